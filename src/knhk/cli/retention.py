"""`knhk retention`: what is pruned and when, of a running server."""

from typing import Any, Final

import typer

from knhk.cli.client import Client
from knhk.cli.options import SERVER, OutputOption, ServerOption
from knhk.cli.output import Output, emit, print_fields, print_table

app = typer.Typer(name="retention", help="What is pruned, and when.", no_args_is_help=True, rich_markup_mode=None)
_LONG_S: Final = 3600.0


@app.command()
def status(server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """What was pruned and archived, and whether the clock is believed."""
    with Client(server) as client:
        shown = client.request("GET", "/retention")
    emit(shown, output, lambda: _print(shown))


@app.command()
def run(server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """Prune now what is past its retention; answers when it is done."""
    with Client(server) as client:
        shown = client.request("POST", "/retention/run", wait_s=_LONG_S)
    emit(shown, output, lambda: print_fields(shown.items()))


@app.command()
def confirm(server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """Say that the machine's clock is right, although the store was last used long before."""
    with Client(server) as client:
        shown = client.request("POST", "/retention/confirm")
    emit(shown, output, lambda: _print(shown))


def _print(shown: dict[str, Any]) -> None:
    print_fields((name, value) for name, value in shown.items() if name != "records")
    if shown["records"]:
        columns = ("record", "at", "ended_before", "workflows", "receipts", "archive")
        print_table(columns, [[row[column] for column in columns] for row in shown["records"]])
