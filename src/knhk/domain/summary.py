"""One row a run: what lists and metrics need, folded from events alone (no plan, no payloads)."""

from collections.abc import Callable, Mapping
from typing import Any, Final

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


_BEGIN_TO_WAIT: Final = frozenset[type[ev.Detail]]({ev.StepWaiting, ev.TimerSet, ev.StepRetrying})
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
    kind = type(event.detail)
    if summary.waiting or kind in _BEGIN_TO_WAIT:
        _fold_waiting(summary, event)
    if (take := _FOLDS.get(kind)) is not None:  # What else happens to single steps does not show in the row.
        take(summary, event, event.detail)


def _submitted(summary: Summary, event: Event, detail: ev.Submitted) -> None:
    summary.name, summary.department, summary.cost_center = detail.name, detail.department, detail.cost_center
    summary.covenant, summary.steps, summary.labels = detail.covenant, detail.steps, detail.labels
    summary.traceparent = detail.traceparent
    summary.definition, summary.version = detail.definition, detail.version
    summary.concurrency_key, summary.rate_key = detail.concurrency_key, detail.rate_key
    summary.parent = detail.child_of.workflow_id
    summary.submitted_at_ns = event.at_ns


def _started(summary: Summary, event: Event, _detail: ev.Started) -> None:
    summary.state = RunState.RUNNING
    summary.started_at_ns = event.at_ns


def _step_completed(summary: Summary, event: Event, _detail: ev.StepCompleted | ev.StepReused) -> None:
    if not is_inside(event.step):
        summary.completed += 1


def _paused(summary: Summary, event: Event, _detail: ev.Paused) -> None:
    summary.state, summary.paused_at_ns = RunState.PAUSED, event.at_ns


def _resumed(summary: Summary, _event: Event, _detail: ev.Resumed) -> None:
    summary.state = RunState.RUNNING if summary.started_at_ns else RunState.PENDING


def _retried(summary: Summary, event: Event, detail: ev.Retried) -> None:
    summary.waiting.clear()
    if detail.completed >= 0:
        summary.completed = detail.completed
    summary.state, summary.ended_at_ns, summary.failure = RunState.RUNNING, 0, None
    summary.started_at_ns = summary.started_at_ns or event.at_ns
    summary.retried_at_ns = event.at_ns


def _completed(summary: Summary, event: Event, _detail: ev.Completed) -> None:
    _end(summary, RunState.COMPLETED, event.at_ns, None)


def _failed(summary: Summary, event: Event, detail: ev.Failed) -> None:
    _end(summary, RunState.FAILED, event.at_ns, detail.failure)


def _timed_out(summary: Summary, event: Event, detail: ev.TimedOut) -> None:
    _end(summary, RunState.TIMED_OUT, event.at_ns, detail.failure)


def _cancelled(summary: Summary, event: Event, detail: ev.Cancelled) -> None:
    _end(summary, RunState.CANCELLED, event.at_ns, cancelled_because(detail.reason))


def _erased(summary: Summary, _event: Event, _detail: ev.PayloadErased) -> None:
    summary.erased = True


_FOLDS: Final[dict[type[ev.Detail], Callable[[Summary, Event, Any], None]]] = {
    ev.Submitted: _submitted,
    ev.Started: _started,
    ev.StepCompleted: _step_completed,
    ev.StepReused: _step_completed,
    ev.Paused: _paused,
    ev.Resumed: _resumed,
    ev.Retried: _retried,
    ev.Completed: _completed,
    ev.Failed: _failed,
    ev.TimedOut: _timed_out,
    ev.Cancelled: _cancelled,
    ev.PayloadErased: _erased,
}


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
