"""One row a run: what lists and metrics need, folded from events alone (no plan, no payloads)."""

from collections.abc import Mapping

import msgspec

from knhk.domain import event as ev
from knhk.domain.event import Event, Failure
from knhk.domain.run import RunState, cancelled_because


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
    match event.detail:
        case ev.StepCompleted():
            summary.completed += 1
        case ev.Submitted(name, department, cost_center, covenant, steps):
            summary.name, summary.department, summary.cost_center = name, department, cost_center
            summary.covenant, summary.steps = covenant, steps
            summary.labels = event.detail.labels
            summary.traceparent = event.detail.traceparent
            summary.definition, summary.version = event.detail.definition, event.detail.version
            summary.concurrency_key, summary.rate_key = event.detail.concurrency_key, event.detail.rate_key
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
            summary.state = RunState.PAUSED
        case ev.Resumed():
            summary.state = RunState.RUNNING if summary.started_at_ns else RunState.PENDING
        case ev.Retried():
            summary.state, summary.ended_at_ns, summary.failure = RunState.RUNNING, 0, None
            summary.started_at_ns = summary.started_at_ns or event.at_ns
            summary.retried_at_ns = event.at_ns
        case ev.PayloadErased():
            summary.erased = True
        case _:
            pass  # What happens to single steps besides their completion does not show in the row.


def _end(summary: Summary, state: RunState, at_ns: int, failure: Failure | None) -> None:
    summary.state, summary.ended_at_ns, summary.failure = state, at_ns, failure
