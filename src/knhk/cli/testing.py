"""`knhk workflow test`: runs a descriptor's own test cases, in memory and in virtual time."""

from pathlib import Path
from typing import Annotated

import typer

from knhk.cli import exit_codes
from knhk.cli.options import OutputOption
from knhk.cli.output import Output, emit
from knhk.domain.errors import InvalidInput, NotFound


def run_cases(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The descriptor, or its FILE.test.yaml.")],
    only: Annotated[str, typer.Option("--only", "-k", help="Only tests whose name contains this.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Run the test cases of FILE.test.yaml, in memory and without a server. Exits 1 if one does not pass."""
    from knhk.testing.cases import load, perform

    try:
        cases, descriptor = load(file)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {error.filename or error}", hint="See docs/testing.md.") from error
    cases.tests = [case for case in cases.tests if only in case.name]
    if not cases.tests:
        raise InvalidInput(f"{file}: no test has {only!r} in its name")
    found = []
    for outcome in perform(cases, descriptor):
        found.append(outcome)
        if output is Output.TABLE:
            mark = typer.style("ok  ", fg="green") if not outcome.problems else typer.style("FAIL", fg="red")
            typer.echo(f"{mark} {outcome.name}")
            for problem in outcome.problems:
                typer.echo(f"       {problem}")
    failed = sum(bool(outcome.problems) for outcome in found)
    shown = {
        "workflow": str(descriptor),
        "passed": len(found) - failed,
        "failed": failed,
        "tests": [
            {"name": one.name, "passed": not one.problems, "problems": one.problems, "elapsed_s": one.elapsed_s}
            for one in found
        ],
    }
    emit(shown, output, lambda: typer.echo(f"{shown['passed']} passed, {shown['failed']} failed"))
    if failed:
        raise typer.Exit(exit_codes.FAILED)
