"""`knhk logs level`: how much a running server logs."""

from typing import Annotated, Any

import typer

from knhk.cli.options import OPERATIONS, OperationsOption, OutputOption
from knhk.cli.output import Output, emit, print_fields

app = typer.Typer(name="logs", help="What a server logs.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """A group, though it has one command."""


@app.command()
def level(
    wanted: Annotated[
        str | None, typer.Argument(metavar="[LEVEL]", help="debug, info, warning, error, critical.")
    ] = None,
    operations: OperationsOption = OPERATIONS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a running server's log level, or change it.

    A change holds until the next one or the end of the process; KNHK_LOG_LEVEL is what it starts with.
    """
    import msgspec

    from knhk.cli.client import Client

    with Client(operations, "--operations") as client:
        if wanted is None:
            found: dict[str, Any] = client.request("GET", "/log-level")
        else:
            found = client.request("PUT", "/log-level", body=msgspec.json.encode({"level": wanted}))
    emit(found, output, lambda: print_fields([("level", str(found["level"]))]))
