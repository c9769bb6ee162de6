"""`knhk backup`: copies of snapshots elsewhere, and what is there. Does what deploy/backup/knhk-backup.sh does."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knhk.cli import exit_codes
from knhk.cli.files import read_public_key
from knhk.cli.options import (
    OPERATIONS,
    ConfigOption,
    OperationsOption,
    OutputOption,
    PublicKeyOption,
    load_config,
)
from knhk.cli.output import Output, emit, print_table, stdout
from knhk.cli.verdict import progress_bar
from knhk.domain.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from knhk.config import Config
    from knhk.recovery.places import Place

app = typer.Typer(
    name="backup", help="Backups: make, list, verify, prune.", no_args_is_help=True, rich_markup_mode=None
)
ToOption = Annotated[
    str | None, typer.Option("--to", metavar="DIR|URL", help="Where backups are; by default recovery.backup_to.")
]


@app.command()
def create(
    context: typer.Context,
    to: ToOption = None,
    latest: Annotated[bool, typer.Option("--latest", help="Keep a copy of the newest under `latest/` too.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Take the snapshot of the data directory; no server may hold it.")
    ] = False,
    operations: OperationsOption = OPERATIONS,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Have the running server take a snapshot and copy it elsewhere, each file read back."""
    import time
    from datetime import UTC, datetime

    from knhk.recovery import backups
    from knhk.recovery.backups import NAME_FORMAT

    settings = load_config(config, context=context).config
    place = _place(settings, to, make=True)
    snapshot = _own_snapshot(settings) if offline else _snapshot_of_server(operations)
    name = datetime.fromtimestamp(time.time(), UTC).strftime(NAME_FORMAT)
    with progress_bar() as progress:
        made = backups.create(snapshot, place, name, progress)
        if latest:
            for entry in list(place.entries("latest")):
                place.delete([entry.name])
            backups.create(snapshot, place, "latest", progress)
    shown = _row(made)
    emit(shown, output, lambda: typer.echo(made.url))


@app.command("list")
def list_backups(
    context: typer.Context, to: ToOption = None, config: ConfigOption = None, output: OutputOption = Output.TABLE
) -> None:
    """The backups, oldest first."""
    from knhk.recovery import backups

    rows = [_row(one) for one in backups.listed(_place(load_config(config, context=context).config, to))]
    columns = ("name", "made_at", "until", "receipts", "size_bytes", "fault")
    emit({"backups": rows}, output, lambda: print_table(columns, [[row[one] for one in columns] for row in rows]))


@app.command()
def verify(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME|DIR|URL", help="A backup of `knhk backup list`, or any other.")],
    to: ToOption = None,
    public_key: PublicKeyOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Compare every file of a backup with its signed manifest. Exits 1 if anything is wrong.

    `knhk recover drill` restores one and verifies what is in it.
    """
    from knhk.recovery import backups, restore
    from knhk.security.signing import verify as check

    url = name
    if backups.NAME.fullmatch(name) or name == "latest":
        url = f"{_place(load_config(config, context=context).config, to)}/{name}"
    pinned = [read_public_key(path) for path in public_key] if public_key else None
    source = restore.find(url, pinned, check)
    with progress_bar() as progress:
        found = list(backups.faults(source, progress))
    shown = {
        "backup": source.name,
        "valid": not found,
        "signed_by": source.signer.key_id if source.signer else None,
        "faults": found,
    }

    def table() -> None:
        console = stdout()
        for one in found:
            console.print(f"  {one}", style="red", markup=False)
        verdict = "INVALID" if found else f"all files are as key {shown['signed_by']} signed them"
        console.print(f"{source.name}: {verdict}", style="bold red" if found else "green", markup=False)

    emit(shown, output, table)
    if found:
        raise typer.Exit(exit_codes.FAILED)


@app.command()
def prune(
    context: typer.Context,
    keep: Annotated[str, typer.Option("--keep", help="How long backups are kept, such as 30d.")] = "30d",
    to: ToOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove old backups, but never the newest good one, and shipped segments that no backup needs."""
    import time

    from knhk.domain.units import parse_duration_ns
    from knhk.recovery import backups

    try:
        keep_ns = parse_duration_ns(keep)
    except ValueError as error:
        raise InvalidInput(f"--keep: {error}") from error
    done = backups.prune(_place(load_config(config, context=context).config, to), time.time_ns(), keep_ns)
    shown = {"backups": done.backups, "segments": done.segments}
    emit(shown, output, lambda: typer.echo(f"Removed {len(done.backups)} backups and {done.segments} segments."))


def _place(settings: "Config", to: str | None, *, make: bool = False) -> "Place":
    from knhk.recovery.places import Place

    url = to or settings.recovery.backup_to
    if not url:
        raise InvalidInput("where are backups?", hint="Name the place with --to, or set recovery.backup_to.")
    return Place.of(url, make=make)


def _own_snapshot(settings: "Config") -> Path:
    import asyncio

    from knhk.bootstrap.recovery import snapshot_offline

    return asyncio.run(snapshot_offline(settings)).path


def _snapshot_of_server(operations: str) -> Path:
    from knhk.cli.client import Client

    with Client(operations) as client:
        written = client.request("POST", "/checkpoint", wait_s=600.0)
    path = Path(written["path"])
    if not path.is_dir():
        raise NotFound(f"the server's snapshot {path} is not on this machine", hint="Run this on the server's machine.")
    return path


def _row(backup: Any) -> dict[str, Any]:
    from knhk.domain.times import rfc3339
    from knhk.recovery.backups import made_ns

    manifest = backup.manifest
    return {
        "name": backup.name,
        "url": backup.url,
        "made_at": rfc3339(made_ns(backup)),
        "until": rfc3339(backup.until_ns) if backup.until_ns else None,
        "receipts": backup.receipts,
        "size_bytes": 0 if manifest is None else manifest.size_bytes,
        "fault": backup.fault or None,
    }
