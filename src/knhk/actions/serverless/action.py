"""The action `serverless`: one attempt at one task of a Serverless Workflow document."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from knhk.actions.jq import JqPool
from knhk.actions.registry import Action, Failed, Invocation, Outcome
from knhk.actions.serverless import calls, http, leaves, sequences
from knhk.actions.serverless.flow import Fault, Turn
from knhk.domain.dsl import task as dsl
from knhk.domain.dsl.plan import NAME, Definition
from knhk.domain.plan import ActionTraits

_RUN: Final[Mapping[type, Callable[[Turn, Any], Awaitable[Outcome]]]] = {
    dsl.Set: leaves.run_set,
    dsl.Switch: leaves.run_switch,
    dsl.Raise: leaves.run_raise,
    dsl.Emit: leaves.run_emit,
    dsl.Wait: leaves.run_wait,
    dsl.Do: sequences.run_do,
    dsl.For: sequences.run_for,
    dsl.Fork: sequences.run_fork,
    dsl.Try: sequences.run_try,
    dsl.CallHttp: http.call_http,
    dsl.CallOpenApi: http.call_openapi,
    dsl.CallAction: calls.call_action,
    dsl.Listen: calls.listen,
    dsl.RunProcess: calls.run_process,
    dsl.RunWorkflow: calls.run_workflow,
}
JQ: Final = JqPool()


async def run(invocation: Invocation) -> Outcome:
    """Does what the task says, or the next part of it."""
    definition = invocation.definition
    if not isinstance(definition, Definition):
        return Failed("KNHK-ACTION-PARAMS", f"{NAME}: only tasks of a Serverless Workflow document are performed")
    turn = Turn(JQ, definition.document, definition.task, invocation)
    try:
        if invocation.round is None and not await turn.enter():
            return await leaves.left_out(turn)
        return await _RUN[type(turn.task.body)](turn, turn.task.body)
    except Fault as fault:
        return fault.outcome()


TRAITS: Final = ActionTraits(
    NAME,
    pure=False,
    params_schema={"type": "object", "properties": {}, "additionalProperties": False},
    reads_dependencies=False,
    disabled="it performs the tasks of documents that begin with `document:`",
)
ACTION: Final = Action(
    TRAITS, "async", run, __name__, JQ.close, about="performs a task of a Serverless Workflow document"
)
