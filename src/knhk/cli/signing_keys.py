"""`knhk receipts keys`: the keys that sign blocks. Listing reads the data directory; rotation needs the server."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knhk.cli.client import Client
from knhk.cli.files import write_bytes
from knhk.cli.options import SERVER, ConfigOption, DataOption, OutputOption, ServerOption
from knhk.cli.output import Output, emit, note, print_fields, print_table
from knhk.cli.store import data_directory, reading
from knhk.domain.errors import InvalidInput

if TYPE_CHECKING:
    from knhk.persistence.scanner import ScannedJournal
    from knhk.ports.environment import PublicKey

app = typer.Typer(name="keys", help="The keys that sign blocks.", invoke_without_command=True, rich_markup_mode=None)


@app.command()
def rotate(server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """Sign with a new key from the next block on.

    Blocks and proofs that the old key signed stay valid.
    """
    body = json.dumps({"what": "signing"}).encode()
    with Client(server) as client:
        shown = client.request("POST", "/keys/rotate", body=body, headers={"Content-Type": "application/json"})
    emit(shown, output, lambda: print_fields(shown.items()))


@app.callback()
def keys(
    context: typer.Context,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="DIR", help="Write each key to DIR/<key id>.pem.")
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """The public keys, oldest first."""
    if context.invoked_subcommand is not None:
        return
    from knhk.domain.times import rfc3339
    from knhk.security.signing import public_pem

    async def read(store: "ScannedJournal") -> "list[PublicKey]":
        return await store.keys()

    rows = [
        {
            "key_id": key.key_id,
            "created_at": rfc3339(key.created_at_ns),
            "retired_at": rfc3339(key.retired_at_ns) if key.retired_at_ns else None,
            "public_key": key.raw.hex(),
            "pem": public_pem(key).decode(),
        }
        for key in reading(data_directory(context, data, config), read)
    ]
    if export is not None:
        _export(rows, export)
    columns = ("key_id", "created_at", "retired_at", "public_key")
    emit({"keys": rows}, output, lambda: print_table(columns, [[row[name] for name in columns] for row in rows]))


def _export(rows: list[dict[str, Any]], directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{directory} cannot be made: {error.strerror}") from error
    for row in rows:
        path = directory / f"{row['key_id']}.pem"
        write_bytes(path, row["pem"].encode())
        note(f"Wrote {path}.")
