"""Routes of the operator's time machine: retries, forks, and the same decision about many runs."""

from secrets import token_hex
from typing import Annotated, Any, Final

import msgspec
from litestar import post
from litestar.params import Body, PathParameter, QueryParameter

from knhk.api.description import KeyHeader, Submitted, problem_responses
from knhk.domain import identifier
from knhk.domain.errors import InvalidParameter
from knhk.domain.identifier import to_text
from knhk.engine import bulk
from knhk.engine.bulk import Act, Failure, Verb
from knhk.engine.control import Control, Filter
from knhk.engine.requests import checked_key

_ACTOR: Final = "api"
_BULK: Final = problem_responses(503)
_CHANGES: Final = problem_responses(404, 409, 422, 429, 503)
_RETRIES: Final = problem_responses(404, 409, 429, 503)

WorkflowId = Annotated[str, PathParameter(description="Such as wf-1234567890.")]


class ForkBody(msgspec.Struct, forbid_unknown_fields=True):
    """Where the new run begins, and the inputs that it has in place of those of the first run."""

    from_step: str
    inputs: dict[str, Any] = {}


class BulkBody(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be done about which runs. With `dry_run` nothing is; `limit` is at most 500."""

    action: Verb
    state: str = ""
    name: str = ""
    department: str = ""
    reason: str = ""
    dry_run: bool = False
    limit: int = 100
    cursor: str | None = None


class BulkAnswer(msgspec.Struct):
    """The runs that were found, and to how many it was done or could not be. Go on at `next_cursor`."""

    matched: list[str]
    done: int
    failed: list[Failure]
    next_cursor: str | None
    dry_run: bool


def time_machine_handlers(control: Control) -> list[Any]:
    """The handlers, for the application."""

    @post("/workflows/{workflow_id:str}/retry", status_code=200, summary="Retry a failed workflow", responses=_RETRIES)
    async def retry_workflow(
        workflow_id: WorkflowId,
        from_step: Annotated[
            str | None, QueryParameter(name="from", description="Go back to this step: all after it runs again too.")
        ] = None,
        idempotency_key: KeyHeader = None,
    ) -> dict[str, Any]:
        """Runs the failed steps again, under the same id; completed steps keep their results."""
        number, key = identifier.parse(workflow_id), checked_key(idempotency_key or "")
        if from_step is None:
            await control.retry(number, actor=_ACTOR, key=key)
        else:
            await control.time_machine.retry_from(number, from_step, actor=_ACTOR, key=key)
        return await control.status(number)

    @post("/workflows/{workflow_id:str}/fork", status_code=202, summary="Fork a workflow", responses=_CHANGES)
    async def fork_workflow(
        workflow_id: WorkflowId,
        data: Annotated[ForkBody, Body()],
        idempotency_key: KeyHeader = None,
    ) -> Submitted:
        """Begins a new run at a step; steps that do not come after it keep what they gave in the first run."""
        accepted = await control.time_machine.fork(
            identifier.parse(workflow_id),
            data.from_step,
            inputs=data.inputs,
            actor=_ACTOR,
            idempotency_key=idempotency_key or "",
        )
        return Submitted(to_text(accepted.workflow_id), accepted.state, accepted.replayed)

    @post("/workflows/bulk", status_code=200, summary="Decide about many workflows", responses=_BULK)
    async def bulk_workflows(data: Annotated[BulkBody, Body()], idempotency_key: KeyHeader = None) -> BulkAnswer:
        """Applies a decision to runs that a filter finds, newest first, or with `dry_run` says to which.

        However often it is repeated with the same key, each run takes it once.
        """
        key = checked_key(idempotency_key or "") or token_hex(16)
        if not 1 <= data.limit <= bulk.MOST_AT_ONCE:
            raise InvalidParameter(f"limit: from 1 to {bulk.MOST_AT_ONCE}")
        if data.cursor is not None and not (data.cursor.isascii() and data.cursor.isdigit() and len(data.cursor) < 20):
            raise InvalidParameter("cursor: not one that this route gave")
        outcome = await bulk.apply_to_all(
            data.action,
            Filter(data.state, data.name, data.department),
            control.listing,
            _act(control, data.action, data.reason, key),
            before=None if data.cursor is None else int(data.cursor),
            limit=data.limit,
            dry_run=data.dry_run,
        )
        following = None if outcome.next_cursor is None else str(outcome.next_cursor)
        return BulkAnswer(outcome.matched, outcome.done, outcome.failed, following, data.dry_run)

    return [retry_workflow, fork_workflow, bulk_workflows]


def _act(control: Control, verb: Verb, reason: str, key: str) -> Act:
    match verb:
        case "cancel":
            return lambda one: control.cancel(one, actor=_ACTOR, reason=reason, key=key)
        case "pause":
            return lambda one: control.pause(one, actor=_ACTOR, reason=reason, key=key)
        case "resume":
            return lambda one: control.resume(one, actor=_ACTOR, reason=reason, key=key)
        case "retry":
            return lambda one: control.retry(one, actor=_ACTOR, key=key)
        case "delete":
            return lambda one: control.erase(one, actor=_ACTOR, reason=reason)
