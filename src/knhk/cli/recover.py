"""`knhk recover`: a data directory from a snapshot or backup. Offline; the old directory is kept."""

from typing import TYPE_CHECKING, Annotated

import typer

from knhk.cli.files import read_public_key
from knhk.cli.options import ConfigOption, DataOption, OutputOption, PublicKeyOption
from knhk.cli.output import Output, emit, note, print_fields, stdout
from knhk.cli.store import DataDirectory, data_directory, open_reader
from knhk.cli.verdict import progress_bar
from knhk.domain.errors import InvalidInput

if TYPE_CHECKING:
    from knhk.recovery.recover import Recovered

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
    data: DataOption = None,
    public_key: PublicKeyOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Restore the data directory from a snapshot or backup. The server must be stopped.

    The restored data are verified before they take the old ones' place; the old ones are kept beside them. Repeat the
    command to go on after an interruption.
    """
    if context.invoked_subcommand is not None:
        return
    import time

    from knhk.recovery import restore
    from knhk.recovery.recover import recover as do_recover
    from knhk.security.signing import verify

    if snapshot is None:
        raise InvalidInput("name what to restore with --snapshot", hint="See `knhk recover --help`.")
    pinned = [read_public_key(path) for path in public_key] if public_key else None
    directory = data_directory(context, data, config)
    source = restore.find(snapshot, pinned, verify)
    with progress_bar() as progress:
        recovered = do_recover(
            directory.path,
            source,
            pinned=pinned,
            check=verify,
            open_store=lambda path: open_reader(DataDirectory(path, directory.persistence)),
            now_ns=time.time_ns(),
            progress=progress,
        )
    emit(recovered.to_dict(), output, lambda: _print(recovered))
    for remark in recovered.remarks:
        note(f"Warning: {remark}.")


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
