"""One row a run: what lists and metrics need, folded from events alone (no plan, no payloads)."""

from collections.abc import Mapping
from typing import Final

import msgspec

from knhk.domain import event as ev
from knhk.domain.event import Event, Failure
from knhk.domain.paths import is_inside
from knhk.domain.run import RunState, cancelled_because

MOST_WAITING: Final = 64
"""So many timers and retries of a run its row names; what it waits for from others it names all of."""


class Wait(msgspec.Struct, array_like=True):
    """What one step of a run waits for; times are Unix time in ns, 0 if there is none."""

    kind: str
    since_ns: int
    until_ns: int = 0
    event: str = ""
    correlate: str = ""
    child: int = 0


class Summary(msgspec.Struct, array_like=True):
    """The state of a run in short. Times are Unix time in nanoseconds, 0 where they have not come.

    `traceparent` is the submitter's, `retried_at_ns` when an operator last let the ended run go on.
    """

    workflow_id: int
    name: str = ""
    department: str = ""
    cost_center: str = ""
    covenant: str = ""
    state: str = RunState.PENDING
    steps: int = 0
    completed: int = 0
    submitted_at_ns: int = 0
    started_at_ns: int = 0
    ended_at_ns: int = 0
    failure: Failure | None = None
    erased: bool = False
    labels: Mapping[str, str] = {}
    traceparent: str = ""
    retried_at_ns: int = 0
    definition: str = ""
    version: int = 0
    concurrency_key: str = ""
    rate_key: str = ""
    parent: int = 0
    paused_at_ns: int = 0
    waiting: dict[str, Wait] = {}


_BEGIN_TO_WAIT: Final = (ev.StepWaiting, ev.TimerSet, ev.StepRetrying)
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Summary)


def encode(summary: Summary) -> bytes:
    """The row's bytes."""
    return _ENCODER.encode(summary)


def decode(raw: bytes) -> Summary:
    """The row of these bytes."""
    return _DECODER.decode(raw)


def fold(summary: Summary, event: Event) -> None:
    """Take one event of the run into its row."""
    if summary.waiting or isinstance(event.detail, _BEGIN_TO_WAIT):
        _fold_waiting(summary, event)
    match event.detail:
        case ev.StepCompleted() | ev.StepReused():
            if not is_inside(event.step):
                summary.completed += 1
        case ev.Submitted(name, department, cost_center, covenant, steps):
            summary.name, summary.department, summary.cost_center = name, department, cost_center
            summary.covenant, summary.steps = covenant, steps
            summary.labels = event.detail.labels
            summary.traceparent = event.detail.traceparent
            summary.definition, summary.version = event.detail.definition, event.detail.version
            summary.concurrency_key, summary.rate_key = event.detail.concurrency_key, event.detail.rate_key
            summary.parent = event.detail.child_of.workflow_id
            summary.submitted_at_ns = event.at_ns
        case ev.Started():
            summary.state = RunState.RUNNING
            summary.started_at_ns = event.at_ns
        case ev.Completed():
            _end(summary, RunState.COMPLETED, event.at_ns, None)
        case ev.Failed(failure):
            _end(summary, RunState.FAILED, event.at_ns, failure)
        case ev.TimedOut(failure):
            _end(summary, RunState.TIMED_OUT, event.at_ns, failure)
        case ev.Cancelled(reason):
            _end(summary, RunState.CANCELLED, event.at_ns, cancelled_because(reason))
        case ev.Paused():
            summary.state, summary.paused_at_ns = RunState.PAUSED, event.at_ns
        case ev.Resumed():
            summary.state = RunState.RUNNING if summary.started_at_ns else RunState.PENDING
        case ev.Retried():
            summary.waiting.clear()
            if event.detail.completed >= 0:
                summary.completed = event.detail.completed
            summary.state, summary.ended_at_ns, summary.failure = RunState.RUNNING, 0, None
            summary.started_at_ns = summary.started_at_ns or event.at_ns
            summary.retried_at_ns = event.at_ns
        case ev.PayloadErased():
            summary.erased = True
        case _:
            pass  # What happens to single steps besides their completion does not show in the row.


def _fold_waiting(summary: Summary, event: Event) -> None:
    """What the steps wait for: one entry by step, gone with the next thing that happens to it."""
    waiting, step, detail = summary.waiting, event.step, event.detail
    if not step:
        return
    match detail:
        case ev.StepWaiting(what, until_ns, name, correlate):
            waiting[step] = Wait(what, event.at_ns, until_ns, name, correlate, detail.child)
        case ev.TimerSet(until_ns) if len(waiting) < MOST_WAITING:
            waiting[step] = Wait("timer", event.at_ns, until_ns)
        case ev.StepRetrying(_, until_ns) if len(waiting) < MOST_WAITING:
            waiting[step] = Wait("retry", event.at_ns, until_ns)
        case ev.ApprovalGiven():
            pass
        case _:
            waiting.pop(step, None)


def _end(summary: Summary, state: RunState, at_ns: int, failure: Failure | None) -> None:
    summary.state, summary.ended_at_ns, summary.failure = state, at_ns, failure
    summary.waiting.clear()
