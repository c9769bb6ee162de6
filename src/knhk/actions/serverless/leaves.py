"""Tasks that do one thing: `set`, `switch`, `raise`, `emit` and `wait`."""

import uuid
from typing import Any, Final

from knhk.actions.registry import Outcome, Succeeded, WaitUntil
from knhk.actions.serverless.flow import Fault, Turn
from knhk.domain.dsl.task import CONTINUE, Emit, Raise, Set, Switch, Wait
from knhk.domain.times import rfc3339

_EVENTS: Final = uuid.UUID("6f1a4b62-52b0-4c1e-9a43-5f1c30a1d9a5")
"""The namespace of the ids of emitted events: an event that is emitted again after a crash has the same id."""


async def run_set(turn: Turn, body: Set) -> Outcome:
    """The template's value over the input."""
    return await turn.leave(await turn.fill(body.template))


async def run_switch(turn: Turn, body: Switch) -> Outcome:
    """The flow goes on where the first case that holds says, the data go on as they are."""
    for case in body.cases:
        if not case.condition or await turn.evaluate(case.condition, turn.input):
            return await turn.leave(turn.input, case.then)
    return await turn.leave(turn.input)


async def run_raise(turn: Turn, body: Raise) -> Outcome:
    """Fail with the error."""
    error: dict[str, Any] = await turn.fill(dict(body.error))
    raise Fault({**error, "instance": error.get("instance") or turn.task.reference})


async def run_emit(turn: Turn, body: Emit) -> Outcome:
    """Make a CloudEvent (1.0) of the template; it is the task's output."""
    given: dict[str, Any] = await turn.fill(dict(body.event))
    event = {
        "specversion": "1.0",
        "id": str(uuid.uuid5(_EVENTS, turn.invocation.idempotency_key)),
        "time": rfc3339(turn.invocation.now_ns),
        **given,
    }
    return await turn.leave(event)


async def run_wait(turn: Turn, body: Wait) -> Outcome:
    """A durable timer; the data go on as they are."""
    done = await turn.leave(turn.input)
    return WaitUntil(turn.invocation.now_ns + body.duration_ns, done.output) if body.duration_ns else done


async def left_out(turn: Turn) -> Succeeded:
    """A task whose `if` does not hold: the raw input goes on as it came."""
    return Succeeded(turn.flow.result(CONTINUE))
