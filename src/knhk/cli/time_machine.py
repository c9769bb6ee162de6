"""`knhk workflow fork` and `knhk workflow bulk`: a new run from a step of another, and decisions about many runs."""

import json
import time
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from knhk.cli import exit_codes
from knhk.cli.files import read_inputs
from knhk.cli.options import SERVER, IdArgument, InputOption, InputsOption, OutputOption, ReasonOption, ServerOption
from knhk.cli.output import Output, emit, note, print_table, stderr
from knhk.cli.workflow import app, connect, path_of, print_workflow
from knhk.domain.errors import Unavailable

if TYPE_CHECKING:
    from knhk.cli.client import Client

_PAGE = 100
_PATIENCE_S: Final = 30.0
_PAUSE_S: Final = 0.5
_JSON = {"Content-Type": "application/json"}


@app.command()
def fork(
    workflow_id: IdArgument,
    from_step: Annotated[str, typer.Option("--from", metavar="STEP", help="The step at which the new run begins.")],
    given: InputOption = None,
    inputs: InputsOption = None,
    idempotency_key: Annotated[str, typer.Option("--idempotency-key", help="Makes it safe to fork again.")] = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Begin a new run at a step of another.

    Steps that do not come after it keep what they gave; inputs that are named take the place of the first run's.
    """
    body = json.dumps({"from_step": from_step, "inputs": read_inputs(given, inputs)}).encode()
    headers = _JSON | ({"Idempotency-Key": idempotency_key} if idempotency_key else {})
    with connect(server) as client:
        shown = client.request("POST", f"{path_of(workflow_id)}/fork", body=body, headers=headers)
    emit(shown, output, lambda: print_workflow(shown))


@app.command()
def bulk(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="cancel, pause, resume, retry or delete.")],
    state: Annotated[str, typer.Option("--state", help="Only workflows in this state.")] = "",
    name: Annotated[str, typer.Option("--name", help="Only workflows of this name.")] = "",
    department: Annotated[str, typer.Option("--department", help="Only workflows of this department.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most so many.")] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which workflows it would be.")] = False,
    reason: ReasonOption = "",
    idempotency_key: Annotated[str, typer.Option("--idempotency-key", help="Goes on with a bulk that had it.")] = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Do the same to all workflows that a filter finds.

    Exits 1 if it was not possible for some of them. Try it with --dry-run first. A server that goes away is
    waited for; if it does not come back, the same command with the key that is told then goes on.
    """
    body: dict[str, Any] = {"action": action, "state": state, "name": name, "department": department}
    body |= {"reason": reason, "dry_run": dry_run}
    headers = _JSON | {"Idempotency-Key": idempotency_key or f"bulk-{token_hex(8)}"}
    found: dict[str, Any] = {"matched": [], "done": 0, "failed": [], "dry_run": dry_run}
    from rich.progress import Progress

    with connect(server) as client, Progress(console=stderr(), transient=True) as progress:
        bar = progress.add_task(action, total=limit)
        cursor: str | None = None
        while len(found["matched"]) < limit:
            body |= {"limit": min(_PAGE, limit - len(found["matched"])), "cursor": cursor}
            page = _page(client, body, headers)
            found["matched"] += page["matched"]
            found["done"] += page["done"]
            found["failed"] += page["failed"]
            progress.update(bar, completed=len(found["matched"]))
            cursor = page["next_cursor"]
            if cursor is None:
                break

    def table() -> None:
        if dry_run:
            print_table(("workflow_id",), [(one,) for one in found["matched"]])
        if found["failed"]:
            columns = ("workflow_id", "code", "message")
            print_table(columns, [[one[column] for column in columns] for one in found["failed"]], folds=("message",))
        verb = f"would {action}" if dry_run else action
        note(f"{verb}: {len(found['matched'])} found, {found['done']} done, {len(found['failed'])} not possible")

    emit(found, output, table)
    if found["failed"]:
        raise typer.Exit(exit_codes.FAILED)


def _page(client: "Client", body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """One page of a bulk. A server that is away is asked again for a while: with the key nothing is done twice."""
    over = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return client.request("POST", "/workflows/bulk", body=json.dumps(body).encode(), headers=headers)
        except Unavailable as error:
            if time.monotonic() >= over:
                note(f"It is done in part: go on with --idempotency-key {headers['Idempotency-Key']}")
                raise
            time.sleep(error.retry_after_s or _PAUSE_S)
