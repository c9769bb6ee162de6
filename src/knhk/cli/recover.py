"""`knhk recover`: a data directory from a snapshot or backup. Offline; the old directory is kept."""

from typing import TYPE_CHECKING, Annotated

import typer

from knhk.cli.files import read_public_key
from knhk.cli.options import ConfigOption, DataOption, OutputOption, PublicKeyOption, load_config
from knhk.cli.output import Output, emit, note, print_fields, stdout
from knhk.cli.store import DataDirectory, open_reader
from knhk.cli.verdict import progress_bar
from knhk.domain.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from knhk.config import Config
    from knhk.ports.environment import PublicKey
    from knhk.recovery.recover import Recovered, Segments
    from knhk.recovery.restore import Source

app = typer.Typer(
    name="recover",
    help="Restore the data directory from a snapshot or backup.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


@app.callback()
def recover(
    context: typer.Context,
    snapshot: Annotated[
        str | None,
        typer.Option("--snapshot", metavar="DIR|URL", help="A snapshot, or a backup with the files in data/."),
    ] = None,
    segments: Annotated[
        str | None,
        typer.Option("--segments", metavar="DIR|URL", help="Where segments are; by default recovery.backup_to."),
    ] = None,
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
    the old ones are kept beside them. Repeat the command to go on after an interruption.
    """
    if context.invoked_subcommand is not None:
        return
    import time

    from knhk.recovery.recover import recover as do_recover
    from knhk.security.signing import verify

    pinned = [read_public_key(path) for path in public_key] if public_key else None
    settings = load_config(config, context=context, data=data).config
    source, shipped = chosen(settings, snapshot, segments, to, pinned)
    with progress_bar() as progress:
        recovered = do_recover(
            settings.persistence.path,
            source,
            shipped,
            pinned=pinned,
            check=verify,
            open_store=lambda path: open_reader(DataDirectory(path, settings.persistence)),
            now_ns=time.time_ns(),
            progress=progress,
        )
    emit(recovered.to_dict(), output, lambda: _print(recovered))
    for remark in recovered.remarks:
        note(f"Warning: {remark}.")


def chosen(
    settings: "Config", snapshot: str | None, segments: str | None, to: str | None, pinned: "list[PublicKey] | None"
) -> "tuple[Source | None, Segments | None]":
    """What to restore: a snapshot, and the segments to replay after it.

    Raises NotFound if there is nothing, InvalidInput if the options contradict each other.
    """
    from knhk.bootstrap.stores import store_options
    from knhk.recovery import backups, restore
    from knhk.recovery.places import Place
    from knhk.recovery.recover import Segments
    from knhk.security.signing import verify

    to_ns = 0 if to is None else _time(to)
    url = segments or settings.recovery.backup_to
    if snapshot is not None and segments is None and to is None:
        return restore.find(snapshot, pinned, verify), None
    place = Place.of(url) if url else None
    if snapshot is None:
        base = backups.newest(place, settings.recovery.checkpoint_path, to_ns)
        snapshot = None if base is None else base.url
    source = None if snapshot is None else restore.find(snapshot, pinned, verify)
    if source is None and place is None:
        raise NotFound(
            "there is nothing to restore: no snapshot, no backup, and no place with segments",
            hint="Name one with --snapshot, or a place with --segments or recovery.backup_to.",
        )
    manifest = None if source is None else source.manifest
    if to_ns and any(head.at_ns > to_ns for head in (manifest.heads if manifest else ())):
        raise InvalidInput(f"{snapshot} is younger than {to}", hint="Name an older one, or none: it is found then.")
    return source, None if place is None else Segments(place, to_ns, store_options(settings.persistence))


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
