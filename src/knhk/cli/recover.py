"""`knhk recover`: a data directory from a snapshot or backup. Offline; the old directory is kept."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knhk.cli import exit_codes
from knhk.cli.files import read_public_key
from knhk.cli.options import (
    OPERATIONS,
    ConfigOption,
    DataOption,
    OperationsOption,
    OutputOption,
    PublicKeyOption,
    load_config,
)
from knhk.cli.output import Output, emit, note, print_fields, stdout
from knhk.cli.store import DataDirectory, open_reader
from knhk.cli.verdict import progress_bar
from knhk.domain.errors import InvalidInput

if TYPE_CHECKING:
    from knhk.config import Config
    from knhk.persistence.scanner import Progress
    from knhk.ports.environment import PublicKey
    from knhk.recovery.choosing import Choice
    from knhk.recovery.recover import OpenStore, Recovered

app = typer.Typer(
    name="recover",
    help="Restore the data directory from a snapshot or backup.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


SnapshotOption = Annotated[
    str | None, typer.Option("--snapshot", metavar="DIR|URL", help="A snapshot, or a backup with the files in data/.")
]
SegmentsOption = Annotated[
    str | None,
    typer.Option("--segments", metavar="DIR|URL", help="Where segments are; by default recovery.backup_to."),
]


@app.callback()
def recover(
    context: typer.Context,
    snapshot: SnapshotOption = None,
    segments: SegmentsOption = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="TIME", help="Up to this time, such as 2026-01-31T12:00:00Z; UTC without a zone."),
    ] = None,
    data: DataOption = None,
    public_key: PublicKeyOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Restore the data directory from a snapshot or backup. The server must be stopped.

    With --snapshot alone, as it was then. Without it, from the newest snapshot or backup and the segments that were
    shipped after it; with --to, up to that time. The restored data are verified before they take the old ones' place;
    the old ones are kept beside them. Repeat the command to go on after an interruption. With persistence.url they go
    to that database, which must be empty.
    """
    if context.invoked_subcommand is not None:
        return
    import time

    from knhk.recovery.recover import recover as do_recover
    from knhk.security.signing import verify

    pinned = [read_public_key(path) for path in public_key] if public_key else None
    settings = load_config(config, context=context, data=data).config
    path = settings.persistence.path
    if settings.persistence.url:
        path = _scratch_of_database(settings)
    choice = chosen(settings, snapshot, segments, to, pinned)
    with progress_bar() as progress:
        recovered = do_recover(
            path,
            choice.parts,
            whole=choice.whole,
            pinned=pinned,
            check=verify,
            open_store=_opener(settings),
            now_ns=time.time_ns(),
            progress=progress,
        )
        if settings.persistence.url:
            _into_database(settings, recovered, progress)
    emit(recovered.to_dict(), output, lambda: _print(recovered))
    for remark in recovered.remarks:
        note(f"Warning: {remark}.")


def _scratch_of_database(settings: "Config") -> Path:
    """Where a restore is made and verified before it goes to the database, which must be empty."""
    import shutil

    from knhk.bootstrap.recovery import require_empty_database

    require_empty_database(settings)
    scratch = settings.persistence.path.with_name(f"{settings.persistence.path.name}.for-database")
    shutil.rmtree(scratch, ignore_errors=True)  # whole, and not loaded: its load was interrupted
    return scratch


def _into_database(settings: "Config", recovered: "Recovered", progress: "Progress") -> None:
    import shutil

    from knhk.bootstrap.recovery import load_database
    from knhk.persistence.postgres_options import public_name

    scratch = Path(recovered.data)
    load_database(settings, scratch, progress)
    recovered.data = public_name(settings.persistence.url)
    shutil.rmtree(scratch)


@app.command()
def drill(
    context: typer.Context,
    snapshot: SnapshotOption = None,
    segments: SegmentsOption = None,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Fold so many runs.")] = 1000,
    scratch: Annotated[
        Path | None, typer.Option("--scratch", metavar="DIR", help="Where to restore to; by default beside the data.")
    ] = None,
    record: Annotated[
        bool,
        typer.Option("--record", help="Let the running server do it, and write it down as metrics and a receipt."),
    ] = False,
    public_key: PublicKeyOption = None,
    operations: OperationsOption = OPERATIONS,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Restore the newest backup on trial, and measure RTO and RPO. Exits 1 if it cannot be restored.

    Works beside a running server and changes nothing. Everything that is restored is verified, and a sample of the
    runs is folded from its receipts.
    """
    if record:
        from knhk.cli.client import Client

        with Client(operations) as client:
            shown = client.request("POST", "/drill", wait_s=24 * 3600.0)
    else:
        settings = load_config(config, context=context).config
        pinned = [read_public_key(path) for path in public_key] if public_key else None
        shown = _drilled(settings, snapshot, segments, sample, scratch, pinned)

    def table() -> None:
        print_fields((name, value) for name, value in shown.items() if name not in ("ok", "problems"))
        for one in shown["problems"]:
            stdout().print(f"  {one}", style="red", markup=False)

    emit(shown, output, table)
    if not shown["ok"]:
        raise typer.Exit(exit_codes.FAILED)


def _drilled(
    settings: "Config",
    snapshot: str | None,
    segments: str | None,
    sample: int,
    scratch: Path | None,
    pinned: "list[PublicKey] | None",
) -> dict[str, Any]:
    import os
    import random
    import time

    from knhk.bootstrap.drills import fold_of, newest_blocks
    from knhk.recovery import drill as drills
    from knhk.recovery.recover import Recovered
    from knhk.recovery.recover import recover as do_recover
    from knhk.security.signing import verify

    data = settings.persistence.path
    _tidy(data)
    live = newest_blocks(settings)  # first, for what is committed during the drill is not its concern

    def restore(path: Path) -> Recovered:
        choice = chosen(settings, snapshot, segments, None, pinned)
        with progress_bar() as progress:
            return do_recover(
                path,
                choice.parts,
                whole=choice.whole,
                pinned=pinned,
                check=verify,
                open_store=_opener(settings),
                now_ns=time.time_ns(),
                progress=progress,
            )

    return drills.drill(
        scratch or data.with_name(f"{data.name}.drill-{os.getpid()}"),
        restore,
        _opener(settings),
        fold_of(settings),
        live=live,
        sample=sample,
        rng=random.Random(),
    ).to_dict()


def _tidy(data: Path) -> None:
    """Remove what drills left behind that were killed."""
    import shutil

    import psutil

    for path in data.parent.glob(f"{data.name}.drill-*"):
        owner = path.name.rpartition("-")[2]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def _opener(settings: "Config") -> "OpenStore":
    return lambda path: open_reader(DataDirectory(path, settings.persistence))


def chosen(
    settings: "Config", snapshot: str | None, segments: str | None, to: str | None, pinned: "list[PublicKey] | None"
) -> "Choice":
    """What to restore, as recovery/choosing.py says. Raises as `choose` does."""
    from knhk.bootstrap.stores import store_options
    from knhk.recovery.choosing import Known, choose
    from knhk.security.signing import verify

    persistence, recovery = settings.persistence, settings.recovery
    known = Known(
        persistence.path,
        recovery.checkpoint_path,
        segments or recovery.backup_to,
        store_options(persistence),
        together=bool(persistence.url),
    )
    with_segments = snapshot is None or segments is not None or to is not None
    return choose(known, snapshot, 0 if to is None else _time(to), pinned, verify, with_segments=with_segments)


def _time(text: str) -> int:
    """Unix time in ns."""
    from datetime import UTC, datetime

    try:
        given = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput(f"--to: {text!r} is not a time such as 2026-01-31T12:00:00Z") from error
    return round((given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp() * 1_000_000) * 1_000


def _print(recovered: "Recovered") -> None:
    shown = recovered.to_dict()
    print_fields(
        [
            ("data directory", shown["data"]),
            ("restored from", shown["source"]),
            ("recovered up to", shown["recovered_to"] or "nothing was ever committed"),
            *(
                (f"partition {head.partition}", f"block {head.height}, {head.receipts} receipts")
                for head in recovered.heads
            ),
            ("segments replayed", recovered.replayed.segments if recovered.replayed else None),
            ("verified", f"{recovered.report.verified_count} of {recovered.report.total_count} receipts"),
            ("signed by", shown["signed_by"]),
            ("old data", shown["old_data"]),
        ]
    )
    console = stdout()
    for one in recovered.missing:
        console.print(f"missing: {one}", style="yellow", markup=False)
    if recovered.kept:
        console.print(f"When you do not need the old data any more: rm -r {recovered.kept}", markup=False)
