"""Spans from committed receipts: one for each attempt of a step, and one for the run around them.

`take` runs beside the engine and only puts what happened into a bounded queue; the spans are made of it by the thread
that exports them. Nothing is kept of a run that is under way: ids follow from the workflow id
(domain/trace_context.py), times from the receipts, so that a trace goes on after a restart as if nothing had been.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from copy import copy
from typing import Final, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

from knhk.domain import event as ev
from knhk.domain import trace_context
from knhk.domain.event import Event, Failure
from knhk.domain.identifier import to_text
from knhk.domain.summary import Summary
from knhk.observability.otlp import SCOPE

MOST_QUEUED: Final = 32_768
_MOST_WAITS: Final = 10_000
_LONGEST_TEXT: Final = 1_000
_ATTEMPTS: Final = frozenset({ev.StepCompleted, ev.StepFailed, ev.StepRetrying})
_ENDS: Final = frozenset({ev.Completed, ev.Failed, ev.TimedOut, ev.Cancelled})
_INTERNAL, _SERVER = Span.SPAN_KIND_INTERNAL, Span.SPAN_KIND_SERVER


class Happened(NamedTuple):
    """What a span is made of. `run` is a copy of the run's row where the run ended."""

    workflow_id: int
    event: Event
    action: str
    run: Summary | None


class Spans:
    """A `ports.fold.Fold`: what happened to the runs that are sampled, until the exporter fetches it.

    `enough` is called when a full request's worth has come together. Only the exporter's thread calls `fetch` and
    `request`.
    """

    def __init__(self, sampling_rate: float, batch: int, enough: Callable[[], None]) -> None:
        self._rate, self._batch, self._enough = sampling_rate, batch, enough
        self._queue: deque[Happened] = deque()
        self._waits: OrderedDict[tuple[int, str], int] = OrderedDict()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def take(self, summary: Summary, event: Event, action: str) -> None:
        """Keep what becomes a span; count it as dropped if the queue is full. Never raises."""
        kind = type(event.detail)
        ended = kind in _ENDS
        if not ended and kind not in _ATTEMPTS and kind is not ev.TimerSet:
            return
        workflow_id = summary.workflow_id
        if self._rate < 1.0 and not trace_context.is_sampled(workflow_id, self._rate, summary.covenant):
            return
        queue = self._queue
        if len(queue) >= MOST_QUEUED:
            self.dropped += 1
            return
        queue.append(Happened(workflow_id, event, action, copy(summary) if ended else None))
        if len(queue) == self._batch:
            self._enough()

    def fetch(self) -> list[Happened]:
        """The oldest of what is queued, at most a request's worth."""
        queue = self._queue
        return [queue.popleft() for _ in range(min(len(queue), self._batch))]

    def request(self, happened: Sequence[Happened], resource: Resource) -> tuple[ExportTraceServiceRequest, int]:
        """The request with the spans of what happened, and how many they are."""
        made = ExportTraceServiceRequest()
        part = made.resource_spans.add()
        part.resource.CopyFrom(resource)
        spans = part.scope_spans.add()
        spans.scope.CopyFrom(SCOPE)
        traces: dict[int, tuple[bytes, bytes]] = {}
        for one in happened:
            ids = traces.get(one.workflow_id)
            if ids is None:
                ids = trace_context.trace_id(one.workflow_id), trace_context.run_span_id(one.workflow_id)
                traces[one.workflow_id] = ids
            if one.run is not None:
                _add_run(spans, one, one.run, ids)
            else:
                self._add_attempt(spans, one, ids)
        return made, len(spans.spans)

    def _add_attempt(self, spans: ScopeSpans, one: Happened, ids: tuple[bytes, bytes]) -> None:
        event = one.event
        failure: Failure | None = None
        match event.detail:
            case ev.StepCompleted(started_at_ns):
                began = started_at_ns or self._waits.pop((one.workflow_id, event.step), event.at_ns)
            case ev.StepFailed(failure, began) | ev.StepRetrying(failure, started_at_ns=began):
                pass
            case ev.TimerSet():
                self._waits[one.workflow_id, event.step] = event.at_ns
                if len(self._waits) > _MOST_WAITS:
                    self._waits.popitem(last=False)
                return
            case _:
                return
        span = spans.spans.add(
            trace_id=ids[0],
            span_id=trace_context.attempt_span_id(one.workflow_id, event.step, event.attempt),
            parent_span_id=ids[1],
            name=event.step,
            kind=_INTERNAL,
            start_time_unix_nano=began or event.at_ns,
            end_time_unix_nano=event.at_ns,
        )
        attributes = span.attributes
        attributes.add(key="knhk.workflow.id").value.string_value = to_text(one.workflow_id)
        if one.action:
            attributes.add(key="knhk.action").value.string_value = one.action
        attributes.add(key="knhk.step.attempt").value.int_value = event.attempt
        if failure is not None:
            _add_failure(span, failure)


def _add_run(spans: ScopeSpans, one: Happened, run: Summary, ids: tuple[bytes, bytes]) -> None:
    """The run's span: from the submission to the end, or for one that was retried, below it and from the retry on."""
    retried = run.retried_at_ns
    span = spans.spans.add(
        trace_id=ids[0],
        span_id=trace_context.run_span_id(one.workflow_id, retried) if retried else ids[1],
        parent_span_id=ids[1] if retried else b"",
        name=f"{run.name} (retried)" if retried else run.name,
        kind=_SERVER,
        start_time_unix_nano=retried or run.submitted_at_ns or one.event.at_ns,
        end_time_unix_nano=one.event.at_ns,
    )
    attributes = span.attributes
    for key, value in (
        ("knhk.workflow.id", to_text(one.workflow_id)),
        ("knhk.workflow.name", run.name),
        ("knhk.workflow.state", run.state),
        ("knhk.covenant", run.covenant),
        ("knhk.department", run.department),
    ):
        if value:
            attributes.add(key=key).value.string_value = value
    submitter = trace_context.parse(run.traceparent) if run.traceparent else None
    if submitter is not None:
        span.links.add(
            trace_id=submitter.trace_id,
            span_id=submitter.span_id,
            flags=int(submitter.sampled),
            attributes=[_link_kind()],
        )
    if run.failure is not None:
        _add_failure(span, run.failure)


def _link_kind() -> KeyValue:
    made = KeyValue(key="knhk.link")
    made.value.string_value = "submitter"
    return made


def _add_failure(span: Span, failure: Failure) -> None:
    span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=failure.message[:_LONGEST_TEXT]))
    span.attributes.add(key="error.type").value.string_value = failure.code
