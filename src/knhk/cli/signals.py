"""`knhk workflow signal|approve|reject` and `knhk event publish`: tell runs on a server what they wait for."""

import json
from typing import Annotated, Any

import typer

from knhk.cli.files import read_value
from knhk.cli.options import SERVER, IdArgument, OutputOption, ServerOption
from knhk.cli.output import Output, emit, print_fields
from knhk.cli.workflow import app as workflow_app
from knhk.cli.workflow import connect, path_of, print_workflow

app = typer.Typer(
    name="event",
    help="Events for all workflows on a server that wait for them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

EventArgument = Annotated[str, typer.Argument(metavar="EVENT", help="The name that steps wait for.")]
DataOption = Annotated[str, typer.Option("--value", metavar="JSON", help="What the step gets; JSON, or else text.")]
ApproverOption = Annotated[str, typer.Option("--as", metavar="NAME", help="Who answers; default: the login name.")]
StepOption = Annotated[str, typer.Option("--step", help="The step; needed if several wait for approval.")]
CommentOption = Annotated[str, typer.Option("--comment", help="Why; kept in the receipt.")]
IdOption = Annotated[str, typer.Option("--id", help="The same id again does nothing, so that it is safe to repeat.")]
_JSON = {"Content-Type": "application/json"}


@workflow_app.command()
def signal(
    workflow_id: IdArgument,
    event: EventArgument,
    value: DataOption = "null",
    correlate: Annotated[str, typer.Option("--correlate", help="Only for a step that names this.")] = "",
    signal_id: IdOption = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give an event to one workflow.

    The step that waits for it takes it; if none does, it is kept for the next one that will.
    """
    body = {"event": event, "data": read_value(value), "correlate": correlate, "id": signal_id}
    with connect(server) as client:
        shown = client.request("POST", f"{path_of(workflow_id)}/signals", body=_encoded(body), headers=_JSON)
    emit(shown, output, lambda: print_fields([*shown.items(), ("kept", shown["step"] is None or None)]))


@workflow_app.command()
def approve(
    workflow_id: IdArgument,
    approver: ApproverOption = "",
    step: StepOption = "",
    comment: CommentOption = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say yes to a step that waits for approval."""
    _answer("approve", workflow_id, approver, step, comment, server, output)


@workflow_app.command()
def reject(
    workflow_id: IdArgument,
    approver: ApproverOption = "",
    step: StepOption = "",
    comment: CommentOption = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say no to a step that waits for approval.

    It fails, or goes on if it says `on_reject: continue`.
    """
    _answer("reject", workflow_id, approver, step, comment, server, output)


def _answer(verb: str, workflow_id: str, approver: str, step: str, comment: str, server: str, output: Output) -> None:
    body = {"approver": approver or _login(), "step": step, "comment": comment}
    with connect(server) as client:
        shown = client.request("POST", f"{path_of(workflow_id)}/{verb}", body=_encoded(body), headers=_JSON)
    emit(shown, output, lambda: print_workflow(shown))


def _login() -> str:
    import getpass

    return getpass.getuser()


@app.command()
def publish(
    event: EventArgument,
    correlate: Annotated[str, typer.Option("--correlate", help="For the steps that name this.")],
    value: DataOption = "null",
    event_id: IdOption = "",
    keep: Annotated[
        str, typer.Option("--keep", metavar="DURATION", help="For steps that wait only later, so long.")
    ] = "1h",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give an event to every workflow that waits for it with this correlation."""
    body = {"event": event, "correlate": correlate, "data": read_value(value), "id": event_id, "keep": keep}
    with connect(server) as client:
        shown = client.request("POST", "/events", body=_encoded(body), headers=_JSON)
    emit(shown, output, lambda: print_fields(shown.items()))


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()
