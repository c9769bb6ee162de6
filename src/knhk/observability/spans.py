"""Spans from committed receipts: one for each attempt of a step, and one for the run around them.

`take` runs beside the engine and encodes each span at once: that is quicker than to keep what it is made of for another
thread, which would have to share the interpreter with the engine anyway. What is encoded waits, a bounded number of
spans, for the exporter. Of runs that are under way only the beginnings of waits are kept, a bounded number too: ids
follow from the workflow id (domain/trace_context.py), times from the receipts, so that a trace goes on after a restart
as if nothing had been.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from knhk.domain import event as ev
from knhk.domain import trace_context
from knhk.domain.event import Detail, Event
from knhk.domain.identifier import to_text
from knhk.domain.paths import enclosing
from knhk.domain.summary import Summary
from knhk.observability import span_encoding as encoding

MOST_QUEUED: Final = 32_768
_MOST_WAITS: Final = 10_000
_BEGINNINGS: Final = frozenset[type[Detail]]({ev.TimerSet, ev.StepWaiting, ev.StepOpened})
_FAILURES: Final = frozenset[type[Detail]]({ev.StepFailed, ev.StepRetrying, ev.StepCaught})
_ENDS: Final = frozenset[type[Detail]]({ev.Completed, ev.Failed, ev.TimedOut, ev.Cancelled})


class Spans:
    """A `ports.fold.Fold`: the spans of the runs that are sampled, until the exporter fetches them.

    `enough` is called when a request's worth has come together. The exporter's thread calls `fetch` alone, all else is
    of the event loop.
    """

    kinds: Final = frozenset[type[Detail]]({ev.StepCompleted, *_BEGINNINGS, *_FAILURES, *_ENDS})

    def __init__(self, sampling_rate: float, batch: int, enough: Callable[[], None]) -> None:
        self._rate, self._batch, self._enough = sampling_rate, batch, enough
        self._parts: list[bytes] = []
        self._count = 0
        self._batches: deque[tuple[list[bytes], int]] = deque()
        self._queued = self._fetched = 0
        self._waits: OrderedDict[tuple[int, str], _Begun] = OrderedDict()
        self.dropped = 0
        # The run of the last event: those of one run mostly come together.
        self._workflow_id, self._sampled, self._number = -1, False, 0
        self._shared = self._below = b""

    def __len__(self) -> int:
        return self._queued - self._fetched

    def take(self, summary: Summary, event: Event, action: str) -> None:
        """Keep the span of what ended, if there is a place for it, else count it as dropped. Never raises."""
        workflow_id = summary.workflow_id
        if workflow_id != self._workflow_id:
            self._turn_to(workflow_id, summary.covenant)
        if not self._sampled:
            return
        kind = type(event.detail)
        if kind is ev.StepCompleted or kind in _FAILURES:
            self._add(self._attempt(workflow_id, event, action))
        elif kind in _ENDS:
            self._add(self._run(summary, event))
        elif kind in _BEGINNINGS:
            self._begin(workflow_id, event)

    def hand_over(self) -> None:
        """Let the exporter fetch what is there, though it is less than a request's worth."""
        if self._count:
            self._batches.append((self._parts, self._count))
            self._parts, self._count = [], 0

    def fetch(self, resource: bytes) -> tuple[bytes, int] | None:
        """The oldest of what was handed over as an encoded ExportTraceServiceRequest, and how many spans that are."""
        if not self._batches:
            return None
        parts, count = self._batches.popleft()
        self._fetched += count
        return encoding.request(parts, resource), count

    def _add(self, span: tuple[bytes, bytes, bytes, bytes]) -> None:
        if self._queued - self._fetched >= MOST_QUEUED:
            self.dropped += 1
            return
        self._parts += span
        self._queued += 1
        self._count += 1
        if self._count == self._batch:
            self.hand_over()
            self._enough()

    def _turn_to(self, workflow_id: int, covenant: str) -> None:
        """What all spans of a run share."""
        self._workflow_id = workflow_id
        self._sampled = self._rate >= 1.0 or trace_context.is_sampled(workflow_id, self._rate, covenant)
        if self._sampled:
            trace_id, span_id = trace_context.run_ids(workflow_id)
            self._number = int.from_bytes(span_id, "little")
            self._shared = encoding.trace(trace_id, to_text(workflow_id))
            self._below = self._shared + encoding.below(span_id)

    def _begin(self, workflow_id: int, event: Event) -> None:
        self._waits.setdefault((workflow_id, event.step), _Begun(event.at_ns, event.attempt))
        if len(self._waits) > _MOST_WAITS:
            self._waits.popitem(last=False)

    def _attempt(self, workflow_id: int, event: Event, action: str) -> tuple[bytes, bytes, bytes, bytes]:
        """The span of an attempt, from when it began, or else began to wait."""
        detail, step, below = event.detail, event.step, self._below
        began_ns: int = detail.started_at_ns  # type: ignore[union-attr]
        if self._waits:
            begun = self._waits.pop((workflow_id, step), None)
            if begun is not None:
                began_ns = began_ns or begun.at_ns
            below = self._below_block(workflow_id, step)
        number, rest = encoding.attempt_of(step, action, event.attempt)
        if type(detail) in _FAILURES:
            rest += encoding.failure_parts(detail.failure)  # type: ignore[union-attr, arg-type]
        return encoding.span(below, self._number ^ number, began_ns or event.at_ns, event.at_ns, rest)

    def _below_block(self, workflow_id: int, step: str) -> bytes:
        """Below the span of the nearest block around a step that is known, or the run's."""
        outer = enclosing(step)
        while outer:
            begun = self._waits.get((workflow_id, outer))
            if begun is not None:
                block = trace_context.attempt_span_id(workflow_id, outer, begun.attempt)
                return self._shared + encoding.below(block)
            outer = enclosing(outer)
        return self._below

    def _run(self, run: Summary, event: Event) -> tuple[bytes, bytes, bytes, bytes]:
        """The run's span: from the submission to the end, or for one that was retried, below it and from the retry."""
        retried_ns = run.retried_at_ns
        suffix = " (retried)" if retried_ns else ""
        rest = encoding.run_parts(run.name, suffix, run.state, run.covenant, run.department)
        if run.failure is not None:
            rest += encoding.failure_parts(run.failure)
        if retried_ns:
            again = int.from_bytes(trace_context.run_span_id(run.workflow_id, retried_ns), "little")
            return encoding.span(self._below, again, retried_ns, event.at_ns, rest)
        submitter = trace_context.parse(run.traceparent) if run.traceparent else None
        if submitter is not None:
            rest += encoding.link_parts(submitter)
        return encoding.span(self._shared, self._number, run.submitted_at_ns or event.at_ns, event.at_ns, rest)


class _Begun(NamedTuple):
    """When a wait or a block began, and in which attempt."""

    at_ns: int
    attempt: int
