"""`knhk run`: one workflow to its end on an embedded store, with its receipts verified afterwards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knhk.cli import exit_codes
from knhk.cli.files import read_bytes, read_inputs
from knhk.cli.live import display
from knhk.cli.options import ConfigOption, InputOption, InputsOption, OutputOption, load_config
from knhk.cli.output import Output, emit, note
from knhk.cli.store import DataDirectory, reading, trust_of
from knhk.cli.verdict import print_report
from knhk.cli.workflow import print_workflow

if TYPE_CHECKING:
    from knhk.config import Loaded
    from knhk.persistence.scanner import ScannedJournal
    from knhk.persistence.verification import Report


def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The descriptor, YAML or JSON; - for stdin.")],
    given: InputOption = None,
    inputs: InputsOption = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Data directory, made if need be; by default persistence.path."),
    ] = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Run a workflow to its end, without a server.

    Exits 0 only if it completed and all its receipts verify.
    """
    descriptor, values = read_bytes(file), read_inputs(given, inputs)
    loaded = load_config(config, context=context, data=data)
    shown = _to_its_end(loaded, descriptor, values)
    persistence = loaded.config.persistence
    report = _verify(DataDirectory(persistence.path, persistence), shown["workflow_id"])

    def table() -> None:
        print_workflow(shown)
        print_report(report, shown["workflow_id"])

    emit({**shown, "verification": report.to_dict()}, output, table)
    if shown["state"] != "completed" or not report.valid:
        raise typer.Exit(exit_codes.FAILED)


def _to_its_end(loaded: "Loaded", descriptor: bytes, inputs: dict[str, Any]) -> dict[str, Any]:
    """Submit the workflow to an engine of our own and follow it. The store is closed afterwards."""
    from knhk import bootstrap
    from knhk.domain.identifier import to_text
    from knhk.engine.control import Submission
    from knhk.engine.loader import decode_receipts

    ended: dict[str, Any] = {}
    begun: list[str] = []

    async def main() -> int:
        async with bootstrap.embedded(loaded) as engine:
            control = engine.control
            accepted = await control.submit(Submission(descriptor, inputs, actor="cli"))
            number = accepted.workflow_id
            begun.append(to_text(number))
            with display(to_text(number)) as live:
                async for sealed in control.follow(number, 0):
                    if sealed is not None:
                        live.show(decode_receipts([sealed], number)[0])
            ended.update(await control.status(number))
            _, ended["outputs"] = await control.results(number)
        return 0

    try:
        bootstrap.run_async(main())
    except KeyboardInterrupt:
        if begun:
            note(f"Interrupted. {begun[0]} goes on when `knhk run` or `knhk serve` next opens this data directory.")
        raise
    return ended


def _verify(directory: DataDirectory, workflow_id: str) -> "Report":
    """Verify the run from what is on disk, as anybody else would."""
    from knhk.domain.identifier import parse
    from knhk.persistence.journal_check import verify_workflow

    async def read(store: "ScannedJournal") -> "Report":
        return await verify_workflow(store, parse(workflow_id), await trust_of(store, None))

    return reading(directory, read)
