"""Spans from committed receipts: one for each attempt of a step, and one for the run around them.

`take` runs beside the engine and only puts what happened into a bounded queue; the spans are made of it by the thread
that exports them. Of runs that are under way only the beginnings of waits are kept, a bounded number: ids follow from
the workflow id (domain/trace_context.py), times from the receipts, so that a trace goes on after a restart as if
nothing had been.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from knhk.domain import event as ev
from knhk.domain import trace_context
from knhk.domain.event import Detail, Event, Failure
from knhk.domain.identifier import to_text
from knhk.domain.paths import enclosing
from knhk.domain.summary import Summary
from knhk.observability import span_encoding as encoding

MOST_QUEUED: Final = 32_768
_MOST_WAITS: Final = 10_000
_ENDED, _BESIDES = True, False
_KINDS: Final[dict[type[Detail], bool]] = {
    **dict.fromkeys((ev.StepCompleted, ev.StepFailed, ev.StepRetrying, ev.StepCaught), _BESIDES),
    **dict.fromkeys((ev.TimerSet, ev.StepWaiting, ev.StepOpened), _BESIDES),
    **dict.fromkeys((ev.Completed, ev.Failed, ev.TimedOut, ev.Cancelled), _ENDED),
}
_WORKFLOW_ID: Final = encoding.TextAttribute("knhk.workflow.id")
_WORKFLOW_NAME: Final = encoding.TextAttribute("knhk.workflow.name")
_OF_ATTEMPTS_THAT_FAILED: Final = frozenset({ev.StepFailed, ev.StepRetrying, ev.StepCaught})


class Ended(NamedTuple):
    """What is needed of the row of a run that ended."""

    name: str
    state: str
    covenant: str
    department: str
    submitted_at_ns: int
    retried_at_ns: int
    traceparent: str
    failure: Failure | None


Happened = tuple[int, Event, str, Ended | None]
"""What a span is made of: workflow id, event, action, and the run where that has ended."""


class Spans:
    """A `ports.fold.Fold`: what happened to the runs that are sampled, until the exporter fetches it.

    `enough` is called when a full request's worth has come together. Only the exporter's thread calls `fetch` and
    `request`.
    """

    kinds: Final = frozenset(_KINDS)

    def __init__(self, sampling_rate: float, batch: int, enough: Callable[[], None]) -> None:
        self._rate, self._batch, self._enough = sampling_rate, batch, enough
        self._queue: deque[Happened] = deque()
        self._waits: OrderedDict[tuple[int, str], _Begun] = OrderedDict()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def take(self, summary: Summary, event: Event, action: str) -> None:
        """Keep what becomes a span; count it as dropped if the queue is full. Never raises."""
        ended = _KINDS.get(type(event.detail))
        if ended is None:
            return
        workflow_id = summary.workflow_id
        if self._rate < 1.0 and not trace_context.is_sampled(workflow_id, self._rate, summary.covenant):
            return
        queue = self._queue
        if len(queue) >= MOST_QUEUED:
            self.dropped += 1
            return
        queue.append((workflow_id, event, action, _ended(summary) if ended else None))
        if len(queue) == self._batch:
            self._enough()

    def fetch(self) -> list[Happened]:
        """The oldest of what is queued, at most a request's worth."""
        queue = self._queue
        return [queue.popleft() for _ in range(min(len(queue), self._batch))]

    def request(self, happened: Sequence[Happened], resource: bytes) -> tuple[bytes, int]:
        """An encoded ExportTraceServiceRequest with the spans of what happened, and how many they are."""
        made: list[bytes] = []
        runs: dict[int, _RunIds] = {}
        for one in happened:
            workflow_id, event, action, run = one
            ids = runs.get(workflow_id)
            if ids is None:
                ids = runs[workflow_id] = _ids_of(workflow_id)
            if run is not None:
                made.append(_run(workflow_id, event, run, ids))
            elif (began_ns := self._began_ns(workflow_id, event)) is not None:
                parent = self._parent(workflow_id, event.step, ids)
                made.append(_attempt(workflow_id, event, action, began_ns, ids, parent))
        return encoding.request(made, resource), len(made)

    def _began_ns(self, workflow_id: int, event: Event) -> int | None:
        """When the attempt began that has ended; None if what happened is that it began."""
        match event.detail:
            case ev.StepCompleted(began_ns) if began_ns:
                return began_ns
            case ev.StepCompleted():
                return self._ended_wait(workflow_id, event)
            case ev.TimerSet() | ev.StepWaiting() | ev.StepOpened():
                self._waits.setdefault((workflow_id, event.step), _Begun(event.at_ns, event.attempt))
                if len(self._waits) > _MOST_WAITS:
                    self._waits.popitem(last=False)
                return None
            case ev.StepFailed() | ev.StepRetrying() | ev.StepCaught():
                waited_from_ns = self._ended_wait(workflow_id, event)
                return event.detail.started_at_ns or waited_from_ns
            case _:
                return None

    def _ended_wait(self, workflow_id: int, event: Event) -> int:
        begun = self._waits.pop((workflow_id, event.step), None)
        return event.at_ns if begun is None else begun.at_ns

    def _parent(self, workflow_id: int, step: str, ids: "_RunIds") -> bytes:
        """The span that a step's span is below: that of the nearest block around it that is known, or the run's."""
        outer = enclosing(step)
        while outer:
            begun = self._waits.get((workflow_id, outer))
            if begun is not None:
                return trace_context.attempt_span_id(workflow_id, outer, begun.attempt)
            outer = enclosing(outer)
        return ids.span_id


def _ended(run: Summary) -> Ended:
    """Copied, because the row goes on changing."""
    return Ended(
        run.name,
        run.state,
        run.covenant,
        run.department,
        run.submitted_at_ns,
        run.retried_at_ns,
        run.traceparent,
        run.failure,
    )


class _Begun(NamedTuple):
    """When a wait or a block began, and in which attempt."""

    at_ns: int
    attempt: int


class _RunIds(NamedTuple):
    trace_id: bytes
    span_id: bytes
    attribute: bytes


def _ids_of(workflow_id: int) -> _RunIds:
    text = _WORKFLOW_ID.of(to_text(workflow_id))
    return _RunIds(*trace_context.run_ids(workflow_id), text)


def _attempt(workflow_id: int, event: Event, action: str, began_ns: int, ids: _RunIds, parent: bytes) -> bytes:
    span_id = trace_context.attempt_span_id(workflow_id, event.step, event.attempt)
    parts = ids.attribute + encoding.attempt_parts(event.step, action, event.attempt)
    if type(event.detail) in _OF_ATTEMPTS_THAT_FAILED:
        parts += encoding.failure_parts(event.detail.failure)  # type: ignore[union-attr, arg-type]
    return encoding.span(ids.trace_id, span_id, parent, began_ns, event.at_ns, parts)


def _run(workflow_id: int, event: Event, run: Ended, ids: _RunIds) -> bytes:
    """The run's span: from the submission to the end, or for one that was retried, below it and from the retry on."""
    parts = ids.attribute + _WORKFLOW_NAME.of(run.name)
    parts += encoding.run_parts(run.state, run.covenant, run.department)
    if run.failure is not None:
        parts += encoding.failure_parts(run.failure)
    retried_ns = run.retried_at_ns
    if retried_ns:
        again = trace_context.run_span_id(workflow_id, retried_ns)
        name = encoding.name_of(f"{run.name} (retried)")
        return encoding.span(ids.trace_id, again, ids.span_id, retried_ns, event.at_ns, name, parts)
    submitter = trace_context.parse(run.traceparent) if run.traceparent else None
    if submitter is not None:
        parts += encoding.link_parts(submitter)
    began_ns = run.submitted_at_ns or event.at_ns
    return encoding.span(ids.trace_id, ids.span_id, b"", began_ns, event.at_ns, encoding.name_of(run.name), parts)
