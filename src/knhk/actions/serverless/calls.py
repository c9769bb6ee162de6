"""Tasks that other actions perform: `call` of an action, `run` of a command, a script or a workflow, `listen`.

Such a task goes into a block whose steps are the other actions with their own guarantees; their params are what the
block is given. What it gives or fails with is the task's.
"""

from collections.abc import Mapping
from typing import Any, Final

from knhk.actions.registry import Enter, Outcome
from knhk.actions.serverless import retries
from knhk.actions.serverless.flow import Turn
from knhk.domain.dsl.task import CallAction, EventFilter, Listen, RunProcess, RunWorkflow

PARAMS: Final = "params"
_ANY_EXIT: Final = list(range(256))
_PROGRAMS: Final = {"python": ["python3", "-c"], "js": ["node", "-e"], "shell": ["sh", "-c"]}


async def call_action(turn: Turn, body: CallAction) -> Outcome:
    """One of the platform's own actions."""
    if turn.invocation.round is None:
        return _enter(turn, await turn.fill(dict(body.params)))
    return await turn.leave(_output(turn))


async def run_workflow(turn: Turn, body: RunWorkflow) -> Outcome:
    """Another workflow, registered under `namespace.name`, or under its name alone."""
    if turn.invocation.round is None:
        params: dict[str, Any] = {"name": body.name, "input": await turn.fill(body.inputs or {})}
        if body.version != "latest":
            params["version"] = body.version
        return _enter(turn, params)
    output = _output(turn)
    return await turn.leave(output if body.awaits else turn.input)


async def run_process(turn: Turn, body: RunProcess) -> Outcome:
    """A shell command or a script, by the `shell` action and within its limits."""
    if turn.invocation.round is None:
        code, arguments = await turn.fill(body.code), await turn.fill(body.arguments)
        environment = dict(await turn.fill(body.environment) or {})
        if isinstance(arguments, Mapping):
            environment |= {str(name): str(value) for name, value in arguments.items()}
            arguments = None
        words = [arguments] if isinstance(arguments, str) else [str(one) for one in arguments or ()]
        # After `sh -c CODE` the first word is the name of the script, and the arguments begin with the second.
        name = [body.language] if body.language == "shell" else []
        command = [*_PROGRAMS[body.language], str(code), *name, *words]
        params: dict[str, Any] = {"command": command, "env": environment}
        if body.returns in ("code", "all"):
            params["expected_exit"] = _ANY_EXIT
        return _enter(turn, params)
    output = _output(turn)
    shown = {"code": output["exit_code"], "stdout": output["stdout"], "stderr": output["stderr"]}
    match body.returns:
        case "none":
            return await turn.leave(None)
        case "all":
            return await turn.leave(shown)
        case one:
            return await turn.leave(shown[one])


async def listen(turn: Turn, body: Listen) -> Outcome:
    """Wait for events, each by the action `wait_for`: its name is the type, its correlation what is expected."""
    if turn.invocation.round is None:
        return _enter(turn, [await _awaited(turn, one) for one in body.filters])
    events = _outputs(turn, any_of=body.strategy == "any")
    return await turn.leave([event["data"] if body.read == "data" else event for event in events])


async def _awaited(turn: Turn, wanted: EventFilter) -> dict[str, Any]:
    params: dict[str, Any] = {"event": await turn.fill(wanted.attributes["type"])}
    for _, expected in wanted.correlate.values():
        params["correlate"] = await turn.evaluate(expected, turn.input)
    return params


def _enter(turn: Turn, params: Any) -> Enter:
    """Go into the block of another action, or of several."""
    several = params if isinstance(params, list) else [params]
    return Enter(0, "call", {**turn.flow.to_data(), PARAMS: several}, {"input": turn.input})


def _output(turn: Turn) -> Any:
    """What the action gave. Raises Fault."""
    return _outputs(turn)[0]


def _outputs(turn: Turn, *, any_of: bool = False) -> list[Any]:
    """What the actions gave, if `any_of` only those that came to an end. Raises Fault."""
    found = turn.invocation.round
    assert found is not None
    turn.input = found.memo["input"]
    done = [result.output for result in found.results if result.completed]
    if len(done) < len(found.results) and not (any_of and done):
        failure = next((result.failure for result in found.results if result.failure is not None), None)
        raise retries.raised(turn, failure)
    return done
