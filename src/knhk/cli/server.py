"""`knhk serve`, `init`, `config show`, `schema`, `version`: the server and what it is set up with."""

from pathlib import Path
from typing import Annotated, Any

import typer

from knhk.cli.options import ConfigOption, OutputOption, given_before, load_config
from knhk.cli.output import Output, emit, note, print_fields, print_table
from knhk.cli.store import DataDirectory, reading

_EMPTY = ("lost+found", "journal.head", "partitions")

config_app = typer.Typer(name="config", help="The configuration.", no_args_is_help=True, rich_markup_mode=None)


def start(config: Path | None) -> None:
    """Serve until a signal comes; leaves with the server's exit code."""
    loaded = load_config(config)
    from knhk import bootstrap

    raise typer.Exit(bootstrap.serve(loaded))


def serve(context: typer.Context, config: ConfigOption = None) -> None:
    """Start the server; also without a command."""
    start(config or given_before(context))


def init(
    context: typer.Context,
    config: ConfigOption = None,
    data: Annotated[Path | None, typer.Option("--data", help="Data directory; by default persistence.path.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Set up the data directory and the key.

    Checks the configuration, and makes the data directory and the signing key if they are not there. Doing it again
    changes nothing.
    """
    import time

    from knhk.config import absent_sections
    from knhk.security.signing import KEY_FILE, Ed25519Signer

    loaded = load_config(config, context=context, data=data)
    for sentence in (*loaded.warnings, *absent_sections(loaded)):
        note(f"Warning: {sentence}")
    persistence = loaded.config.persistence
    key_file = persistence.key_path / KEY_FILE
    directory = DataDirectory(persistence.path, persistence)
    had_data, had_key = _has_data(directory), key_file.exists()
    signer = Ed25519Signer.load_or_create(persistence.key_path, time.time_ns())
    _prepare_data(loaded.config)
    shown = {
        "config": str(loaded.path) if loaded.path else "defaults",
        "data": directory.name,
        "data_created": not had_data,
        "signing_key": str(key_file),
        "signing_key_created": not had_key,
        "key_id": signer.public_key.key_id,
    }

    kind = "database" if persistence.url else "data directory"

    def table() -> None:
        print_fields(
            [
                ("configuration", f"{shown['config']}: good"),
                (kind, f"{shown['data']}: {'was there' if had_data else 'made'}"),
                ("signing key", f"{key_file}: {'was there' if had_key else 'made'}"),
                ("key id", shown["key_id"]),
            ]
        )

    emit(shown, output, table)


def _has_data(directory: DataDirectory) -> bool:
    """Whether the directory, or the tables in the database, are there."""
    from knhk.domain.errors import InvalidConfiguration

    if not directory.persistence.url:
        return directory.path.is_dir()
    try:
        reading(directory, lambda store: store.keys())
    except InvalidConfiguration:
        return False
    return True


async def _make_tables(settings: Any) -> None:
    from knhk.bootstrap.stores import postgres_store

    store = postgres_store(settings.persistence)
    try:
        await store.open()
    finally:
        await store.close()


def _prepare_data(settings: Any) -> None:
    """Make the directory, or look at the store that is in it, which a server may be using.

    The store itself is made by the first start: until then a backup can be copied into the directory.
    """
    import asyncio
    import os

    from knhk.bootstrap import open_store
    from knhk.domain.errors import InvalidConfiguration

    if settings.persistence.url:
        asyncio.run(_make_tables(settings))
        return
    path: Path = settings.persistence.path
    if (path / "CURRENT").exists():
        asyncio.run(open_store(settings, read_only=True).close())
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        foreign = next((one.name for one in path.iterdir() if one.name not in _EMPTY), "")
    except OSError as error:
        raise InvalidConfiguration(f"persistence.path: {path} cannot be made: {error.strerror}") from error
    if foreign:
        raise InvalidConfiguration(f"persistence.path: {path} is not a KNHK store, and it is not empty: {foreign}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise InvalidConfiguration(f"persistence.path: {path} cannot be written")


@config_app.command("show")
def show(context: typer.Context, config: ConfigOption = None, output: OutputOption = Output.TABLE) -> None:
    """The effective values and where each came from, secrets masked."""
    from knhk.config import absent_sections, redacted

    loaded = load_config(config, context=context)
    rows = redacted(loaded)
    for sentence in (*loaded.warnings, *absent_sections(loaded)):
        note(f"Warning: {sentence}")
    data = {
        "file": str(loaded.path) if loaded.path else None,
        "values": [{"key": row.key, "value": row.value, "source": row.source} for row in rows],
    }
    emit(data, output, lambda: print_table(("key", "value", "source"), rows, folds=("value", "source")))


def schema(output: OutputOption = Output.JSON) -> None:
    """The JSON Schema of descriptors."""
    import json

    from knhk.domain.descriptor_schema import published_schema

    found = published_schema()
    emit(found, output, lambda: typer.echo(json.dumps(found, indent=2)))


def version(output: OutputOption = Output.TABLE) -> None:
    """The versions of KNHK and Python."""
    import platform

    import knhk

    shown = {"version": knhk.__version__, "python": platform.python_version()}
    emit(shown, output, lambda: typer.echo(f"knhk {shown['version']} (Python {shown['python']})"))
