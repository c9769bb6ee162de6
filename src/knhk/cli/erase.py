"""`knhk erase`: inputs and outputs gone for good, in every copy if they were encrypted; receipts stay and verify."""

import json
from typing import Annotated

import typer

from knhk.cli.client import Client
from knhk.cli.options import SERVER, IdArgument, OutputOption, ReasonOption, ServerOption
from knhk.cli.output import Output, emit, print_fields
from knhk.domain.identifier import parse

app = typer.Typer(name="erase", help="Erase inputs and outputs for good.", no_args_is_help=True, rich_markup_mode=None)
_LONG_S = 3600.0


@app.command()
def workflow(
    workflow_id: IdArgument,
    reason: ReasonOption = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Erase the inputs and outputs of an ended workflow. Its receipts stay and still verify."""
    parse(workflow_id)
    _erase(f"/workflows/{workflow_id}/erase", {"reason": reason}, server, output)


@app.command()
def department(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in the descriptors' metadata.department.")],
    reason: ReasonOption = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Erase the inputs and outputs of all workflows of a department, which must have ended."""
    _erase("/departments/erase", {"department": name, "reason": reason}, server, output)


def _erase(path: str, body: dict[str, str], server: str, output: Output) -> None:
    with Client(server) as client:
        headers = {"Content-Type": "application/json"}
        shown = client.request("POST", path, body=json.dumps(body).encode(), headers=headers, wait_s=_LONG_S)
    emit(shown, output, lambda: print_fields(shown.items()))
