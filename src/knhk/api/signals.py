"""Routes by which people and systems tell runs what they wait for: signals, approvals, events."""

from typing import Annotated, Any, Final

import msgspec
from litestar import post
from litestar.params import Body, HeaderParameter, PathParameter

from knhk.api.description import problem_responses
from knhk.domain import identifier
from knhk.domain.errors import InvalidParameter
from knhk.domain.identifier import to_text
from knhk.domain.times import rfc3339
from knhk.domain.units import parse_duration_ns
from knhk.engine.control import Control
from knhk.engine.signals import Published

_ACTOR: Final = "api"
_CHANGES: Final = problem_responses(404, 409, 413, 422, 429, 503)
_EVENTS: Final = problem_responses(413, 422, 503)

WorkflowId = Annotated[str, PathParameter(description="Such as wf-1234567890.")]
KeyHeader = Annotated[
    str | None, HeaderParameter(name="Idempotency-Key", description="Stands for `id`, if the body has none.")
]


class SignalBody(msgspec.Struct, forbid_unknown_fields=True):
    """What happened. The same `id` again does nothing."""

    event: str
    data: Any = None
    correlate: str = ""
    id: str = ""


class SignalAnswer(msgspec.Struct):
    """`step` took the signal; without one it is kept for a step that waits later."""

    workflow_id: str
    signal_id: str
    step: str | None
    replayed: bool


class ApprovalBody(msgspec.Struct, forbid_unknown_fields=True):
    """Who answers. `step` may be left out if only one waits for approval."""

    approver: str
    step: str = ""
    comment: str = ""


class EventBody(msgspec.Struct, forbid_unknown_fields=True):
    """What happened, and for whom: all steps that wait for it with this correlation, now or while it is kept."""

    event: str
    correlate: str
    data: Any = None
    id: str = ""
    keep: str = "1h"


class EventAnswer(msgspec.Struct):
    """The event is on disk; these runs have it by now, and its triggers have started those.

    `pending` get it as soon as the node that has them answers, without anybody's help.
    """

    event_id: str
    record: str
    delivered_to: list[str]
    pending: list[str]
    started: list[str]
    kept_until: str
    replayed: bool


def signal_handlers(control: Control) -> list[Any]:
    """The handlers, for the application."""
    signals = control.signals

    @post("/workflows/{workflow_id:str}/signals", status_code=200, summary="Signal a workflow", responses=_CHANGES)
    async def signal_workflow(
        workflow_id: WorkflowId, data: Annotated[SignalBody, Body()], idempotency_key: KeyHeader = None
    ) -> SignalAnswer:
        """Gives an event to one run: to the step that waits for it, or to the next one that will."""
        number = identifier.parse(workflow_id)
        done = await signals.signal(
            number,
            data.event,
            data.data,
            signal_id=data.id or idempotency_key or "",
            correlate=data.correlate,
            actor=_ACTOR,
        )
        return SignalAnswer(workflow_id, done.signal_id, done.step or None, done.replayed)

    async def judged(workflow_id: str, body: ApprovalBody, approved: bool) -> dict[str, Any]:
        number = identifier.parse(workflow_id)
        await signals.judge(
            number, body.step, approved, approver=body.approver, comment=body.comment, actor=body.approver
        )
        return await control.status(number)

    @post("/workflows/{workflow_id:str}/approve", status_code=200, summary="Approve a step", responses=_CHANGES)
    async def approve_workflow(workflow_id: WorkflowId, data: Annotated[ApprovalBody, Body()]) -> dict[str, Any]:
        """Says yes to a step that waits for approval. The same answer of the same person again does nothing."""
        return await judged(workflow_id, data, True)

    @post("/workflows/{workflow_id:str}/reject", status_code=200, summary="Reject a step", responses=_CHANGES)
    async def reject_workflow(workflow_id: WorkflowId, data: Annotated[ApprovalBody, Body()]) -> dict[str, Any]:
        """Says no to a step that waits for approval: it fails, or goes on if it says `on_reject: continue`."""
        return await judged(workflow_id, data, False)

    @post("/events", status_code=200, summary="Publish an event", responses=_EVENTS)
    async def publish_event(data: Annotated[EventBody, Body()], idempotency_key: KeyHeader = None) -> EventAnswer:
        """Gives an event to every run that waits for it with this correlation, now or while it is kept."""
        done = await signals.publish(
            data.event,
            data.correlate,
            data.data,
            event_id=data.id or idempotency_key or "",
            keep_ns=_duration_ns(data.keep),
            actor=_ACTOR,
        )
        return _shown(done)

    @post(
        "/workflows/{workflow_id:str}/kept-events/{record:str}",
        status_code=200,
        summary="Give a kept event to a workflow",
        responses=problem_responses(404, 503),
    )
    async def give_event(
        workflow_id: WorkflowId, record: Annotated[str, PathParameter(description="The event's record.")]
    ) -> dict[str, bool]:
        """The run takes it if it waits for it. The nodes of a cluster do this by themselves."""
        return {"taken": await signals.give_kept(identifier.parse(workflow_id), identifier.parse(record))}

    return [signal_workflow, approve_workflow, reject_workflow, publish_event, give_event]


def _shown(done: Published) -> EventAnswer:
    delivered, pending, started = (list(map(to_text, ids)) for ids in (done.delivered_to, done.pending, done.started))
    kept_until = rfc3339(done.kept_until_ns)
    return EventAnswer(done.event_id, to_text(done.record_id), delivered, pending, started, kept_until, done.replayed)


def _duration_ns(text: str) -> int:
    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise InvalidParameter(f"keep: {error}") from error
