"""`knhk workflow`: submit, look at and steer workflows on a server, over HTTP."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knhk.cli import exit_codes
from knhk.cli.files import read_bytes, read_inputs
from knhk.cli.options import (
    SERVER,
    ConfigOption,
    IdArgument,
    InputOption,
    InputsOption,
    OutputOption,
    ReasonOption,
    ServerOption,
    load_config,
)
from knhk.cli.output import Output, cell, emit, note, print_fields, print_table
from knhk.domain.errors import InvalidDescriptor, InvalidInput, InvalidParameter

if TYPE_CHECKING:
    from knhk.cli.client import Client

app = typer.Typer(
    name="workflow",
    help="Submit, look at and steer workflows on a server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_MOST_WAITING = 20
_FIELDS = (
    "workflow_id",
    "name",
    "state",
    "department",
    "cost_center",
    "covenant",
    "labels",
    "definition",
    "parent",
    "children",
    "forked_from",
    "submitted_at",
    "started_at",
    "ended_at",
    "duration_ms",
    "deadline",
    "replayed",
    "receipts",
    "results_root",
    "erased",
    "failure",
    "inputs",
    "outputs",
)


def connect(server: str) -> "Client":
    """A client of a server's API."""
    from knhk.cli.client import Client

    return Client(server)


def path_of(workflow_id: str) -> str:
    """The workflow's route. Raises WorkflowNotFound for what is no id, so that nothing else gets into the path."""
    from knhk.domain.identifier import parse, to_text

    return f"/workflows/{to_text(parse(workflow_id))}"


def print_workflow(shown: dict[str, Any]) -> None:
    """A workflow and its steps for people."""
    print_fields(
        (name, _field(shown[name], name)) for name in _FIELDS if shown.get(name) is not False and name in shown
    )
    print_fields(("waiting on", waiting_text(one)) for one in (shown.get("waiting_on") or [])[:_MOST_WAITING])
    steps = [*(shown.get("steps") or []), *(shown.get("inside") or [])]
    if steps:
        columns = ["name", "action", "state", "attempts", "guarantee"]
        if any("failure" in step for step in steps):
            columns.append("failure")
        if any("output" in step for step in steps):
            columns.append("output")
        rows = [[_cell(step, column) for column in columns] for step in steps]
        print_table(columns, rows, folds=("failure", "output", "name"))


def waiting_text(waiting: dict[str, Any]) -> str:
    """What a workflow waits for, in a line."""
    known = ("kind", "step", "since", "until")
    parts = [waiting["kind"], *([f"in {waiting['step']}"] if waiting.get("step") else [])]
    parts += [f"{name} {cell(value)}" for name, value in waiting.items() if name not in known and value not in ("", [])]
    parts += [f"{name} {waiting[name]}" for name in ("since", "until") if waiting.get(name)]
    return " ".join(parts)


def _field(value: Any, name: str) -> Any:
    """A failure as a sentence, everything else as it is."""
    if name != "failure" or not isinstance(value, dict):
        return value
    step = f"step {value['step']!r}: " if value.get("step") else ""
    guard = f" (guard {value['guard']})" if value.get("guard") else ""
    code = f" [{value['code']}]" if value.get("code") else ""
    return f"{step}{value.get('message', '')}{code}{guard}"


def _cell(step: dict[str, Any], column: str) -> Any:
    value = step.get(column)
    return value["message"] if column == "failure" and isinstance(value, dict) else value


@app.command()
def submit(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The descriptor, YAML or JSON; - for stdin.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Run a registered definition in place of a FILE.")
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="With --name: its number, label or digest; else the newest.")
    ] = None,
    given: InputOption = None,
    inputs: InputsOption = None,
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", help="Makes it safe to submit again: the first run is answered.")
    ] = None,
    wait: Annotated[
        str | None, typer.Option("--wait", metavar="DURATION", help="Wait for the end, at most so long, such as 30s.")
    ] = None,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Submit a workflow. With --wait, exits 1 if it ended without completing."""
    body, content_type = _submission(file, name, version, read_inputs(given, inputs))
    headers = {"Content-Type": content_type}
    if idempotency_key is not None:
        headers["Idempotency-Key"] = _header(idempotency_key)
    with connect(server) as client:
        answer = client.request(
            "POST", "/workflows", query={"wait": wait}, body=body, headers=headers, wait_s=_seconds(wait)
        )
    emit(answer, output, lambda: print_workflow(answer))
    _exit_by(answer["state"])


def _submission(file: Path | None, name: str | None, version: str | None, values: dict[str, Any]) -> tuple[bytes, str]:
    """The body of a submission and its type."""
    if (file is None) is (name is None):
        raise InvalidParameter("give either a FILE or --name", hint="`knhk definition list` shows registered names.")
    if file is None:
        return json.dumps({"name": name, "version": version or "", "inputs": values}).encode(), "application/json"
    if version is not None:
        raise InvalidParameter("--version goes with --name", hint="A FILE has no versions before it is registered.")
    descriptor = read_bytes(file)
    if values:
        return _envelope(descriptor, values), "application/json"
    return descriptor, "application/json" if descriptor.lstrip()[:1] == b"{" else "application/yaml"


def _envelope(descriptor: bytes, inputs: dict[str, Any]) -> bytes:
    try:
        return json.dumps({"descriptor": descriptor.decode(), "inputs": inputs}).encode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the descriptor is not UTF-8: {error}") from error


def _header(key: str) -> str:
    if not key.isascii() or not key.isprintable():
        raise InvalidParameter("--idempotency-key: only printable ASCII characters")
    return key


def _seconds(wait: str | None) -> float:
    from knhk.domain.units import parse_duration_ns

    if wait is None:
        return 0.0
    try:
        return parse_duration_ns(wait) / 1e9
    except ValueError as error:
        raise InvalidParameter(f"--wait: {error}") from error


def _exit_by(state: str) -> None:
    if state in ("failed", "cancelled", "timed_out"):
        raise typer.Exit(exit_codes.FAILED)


@app.command()
def status(workflow_id: IdArgument, server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """State, steps, failure and what the workflow waits for."""
    with connect(server) as client:
        shown = client.request("GET", path_of(workflow_id))
    emit(shown, output, lambda: print_workflow(shown))


@app.command()
def inspect(
    workflow_id: IdArgument,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="With inputs, outputs and receipts.")] = False,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show why a workflow is as it is.

    With --verbose also its inputs, its outputs, every attempt with its failure, and where its time went.
    """
    from knhk.cli.bars import plain
    from knhk.cli.trace import print_attempts, print_timing, read_timing

    with connect(server) as client:
        shown = client.request("GET", path_of(workflow_id), query={"verbose": "true" if verbose else None})
        if verbose:
            shown["history"] = client.request("GET", f"{path_of(workflow_id)}/receipts")["receipts"]
    timing = read_timing(shown, shown["history"]) if shown.get("history") else None
    if timing is not None:
        shown["timeline"] = plain(timing.steps)

    def table() -> None:
        print_workflow(shown)
        if timing is not None:
            print_attempts(timing)
            typer.echo()
            print_timing(timing, shown["state"])

    emit(shown, output, table)


@app.command("list")
def list_workflows(
    state: Annotated[str | None, typer.Option("--state", help="Only workflows in this state.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only workflows of this name.")] = None,
    department: Annotated[str | None, typer.Option("--department", help="Only workflows of this department.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many.")] = 50,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Go on where an earlier list ended.")] = None,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Workflows, newest first."""
    query: dict[str, str | int | None] = {"state": state, "name": name, "department": department}
    found: list[dict[str, Any]] = []
    with connect(server) as client:
        while True:
            # A page reads a bounded part of the journal and may be short although more follow.
            page = client.request("GET", "/workflows", query={**query, "limit": limit - len(found), "cursor": cursor})
            found += page["workflows"]
            for what in page.get("unanswered", ()):
                note(f"not in this list: {what}")
            cursor = page["next_cursor"]
            if cursor is None or len(found) >= limit:
                break

    def table() -> None:
        shown = ("workflow_id", "name", "state", "department", "submitted_at", "duration_ms")
        columns = (*shown, "steps", "waiting on")
        rows = [
            [
                *[row[column] for column in shown],
                f"{row['steps_completed']}/{row['steps_total']}",
                ", ".join(dict.fromkeys(one["kind"] for one in row.get("waiting_on") or ())),
            ]
            for row in found
        ]
        print_table(columns, rows, folds=("name",))
        if cursor is not None:
            note(f"There are more: --cursor {cursor}")

    emit({"workflows": found, "next_cursor": cursor}, output, table)


def _change(verb: str, workflow_id: str, reason: str | None, server: str, output: Output) -> None:
    body = None if reason is None else json.dumps({"reason": reason}).encode()
    headers = {} if body is None else {"Content-Type": "application/json"}
    with connect(server) as client:
        shown = client.request("POST", f"{path_of(workflow_id)}/{verb}", body=body, headers=headers)
    emit(shown, output, lambda: print_workflow(shown))


@app.command()
def cancel(
    workflow_id: IdArgument,
    reason: ReasonOption = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """End a workflow.

    What is under way is stopped, nothing more is begun.
    """
    _change("cancel", workflow_id, reason, server, output)


@app.command()
def pause(
    workflow_id: IdArgument,
    reason: ReasonOption = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Begin no further steps; those under way finish."""
    _change("pause", workflow_id, reason, server, output)


@app.command()
def resume(
    workflow_id: IdArgument,
    reason: ReasonOption = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a paused workflow go on."""
    _change("resume", workflow_id, reason, server, output)


@app.command()
def retry(
    workflow_id: IdArgument,
    from_step: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Go back to this step: all after it runs again too.")
    ] = None,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Run the failed steps of a workflow again.

    It keeps its id, and completed steps keep their results.
    """
    with connect(server) as client:
        shown = client.request("POST", f"{path_of(workflow_id)}/retry", query={"from": from_step})
    emit(shown, output, lambda: print_workflow(shown))


@app.command()
def delete(workflow_id: IdArgument, server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """Erase the inputs and outputs of an ended workflow. Its receipts stay and still verify."""
    with connect(server) as client:
        answer = client.request("DELETE", path_of(workflow_id))
    emit(answer, output, lambda: print_fields(answer.items()))


@app.command()
def watch(
    workflow_id: IdArgument,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Follow a workflow to its end, then show it. Exits 1 if it did not complete."""
    from knhk.cli.live import display

    path = path_of(workflow_id)
    with connect(server) as client:
        with display(workflow_id) as shown_live:
            for receipt in client.events(workflow_id):
                shown_live.show(receipt)
        shown = client.request("GET", path)
    emit(shown, output, lambda: print_workflow(shown))
    _exit_by(shown["state"])


@app.command()
def validate(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The descriptor, YAML or JSON; - for stdin.")],
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check a descriptor without a server.

    Says everything that is wrong with it, with line and column.
    """
    from msgspec import structs

    from knhk.actions.catalogue import catalogue
    from knhk.domain.compile import compile_descriptor

    text = read_bytes(file)
    settings = load_config(config, context=context).config
    try:
        plan = compile_descriptor(
            text,
            catalogue(settings.actions).traits(),
            max_bytes=settings.api.max_body_bytes,
            max_steps=settings.api.max_steps,
            default_timeout_ns=settings.platform.workflow_timeout_ns,
            tick_ns=settings.platform.tick_ns,
        )
    except InvalidDescriptor as error:
        problems = [structs.asdict(problem) for problem in error.problems] or [{"message": error.message}]
        emit({"valid": False, "problems": problems}, output, lambda: None)
        raise
    shown = {
        "valid": True,
        "name": plan.name,
        "covenant": plan.covenant,
        "steps": len(plan.steps),
        "descriptor_digest": plan.digest.hex(),
    }
    emit(shown, output, lambda: print_fields(shown.items()))
