"""Spans from receipts: times, parents, links, and what happens when nobody fetches them."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from knhk.domain import event as ev
from knhk.domain import trace_context
from knhk.domain.event import Event, Failure
from knhk.domain.summary import Summary, fold
from knhk.observability import spans as module
from knhk.observability.otlp import resource
from knhk.observability.spans import Spans
from tests.services.otlp import attributes

FAILURE = Failure("KNHK-X", "it broke")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def feed(spans: Spans, workflow_id: int, events: Iterable[Event], **submitted: str) -> None:
    summary = Summary(workflow_id)
    for event in [Event(100, ev.Submitted("name", **submitted)), Event(110, ev.Started()), *events]:  # type: ignore[arg-type]
        fold(summary, event)
        spans.take(summary, event, "http" if event.step else "")


def fetched(spans: Spans) -> list[Span]:
    spans.hand_over()
    request = spans.fetch(resource("node", "host").SerializeToString())
    if request is None:
        return []
    raw, count = request
    made = ExportTraceServiceRequest.FromString(raw)
    assert attributes(made.resource_spans[0].resource)["service.name"] == "knhk"
    assert made.resource_spans[0].scope_spans[0].scope.name == "knhk"
    found = list(made.resource_spans[0].scope_spans[0].spans)
    assert len(found) == count
    return found


def test_a_run_with_a_retry_is_a_tree() -> None:
    spans = Spans(1.0, 100, lambda: None)
    feed(
        spans,
        7,
        [
            Event(150, ev.StepRetrying(FAILURE, 200, started_at_ns=120), step="a", attempt=1),
            Event(250, ev.StepCompleted(started_at_ns=200), step="a", attempt=2),
            Event(260, ev.Completed()),
        ],
        traceparent=PARENT,
    )
    first, second, run = fetched(spans)
    assert {span.trace_id for span in (first, second, run)} == {trace_context.trace_id(7)}
    assert first.parent_span_id == second.parent_span_id == run.span_id == trace_context.run_span_id(7)
    assert not run.parent_span_id
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (120, 150)
    assert (second.start_time_unix_nano, second.end_time_unix_nano) == (200, 250)
    assert (run.start_time_unix_nano, run.end_time_unix_nano) == (100, 260)
    assert first.status.code == Status.STATUS_CODE_ERROR
    assert attributes(first)["error.type"] == "KNHK-X"
    assert attributes(second) == {"knhk.workflow.id": "wf-7", "knhk.action": "http", "knhk.step.attempt": 2}
    assert second.status.code == run.status.code == Status.STATUS_CODE_UNSET
    (link,) = run.links
    assert (link.trace_id.hex(), link.span_id.hex()) == (PARENT[3:35], PARENT[36:52])


def test_what_a_retry_of_an_ended_run_adds_is_a_span_below_the_first() -> None:
    spans = Spans(1.0, 100, lambda: None)
    feed(
        spans,
        7,
        [
            Event(200, ev.Failed(FAILURE)),
            Event(300, ev.Retried(steps=("a",))),
            Event(400, ev.Completed()),
        ],
    )
    first, again = fetched(spans)
    assert first.status.message == "it broke"
    assert again.parent_span_id == first.span_id != again.span_id
    assert (again.name, again.start_time_unix_nano, again.end_time_unix_nano) == ("name (retried)", 300, 400)


@pytest.mark.parametrize(
    ("beginning", "began"),
    [(ev.TimerSet(500), 120), (ev.StepWaiting("signal"), 120), (ev.StepOpened(), 120), (None, 500)],
)
def test_a_wait_or_a_group_began_when_the_journal_says(beginning: ev.AnyDetail | None, began: int) -> None:
    spans = Spans(1.0, 100, lambda: None)
    known = [] if beginning is None else [Event(120, beginning, step="a", attempt=1)]  # not after a restart
    feed(spans, 7, [*known, Event(500, ev.StepCompleted(), step="a", attempt=1)])
    (span,) = fetched(spans)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (began, 500)


def test_a_failure_that_is_caught_is_the_failure_of_an_attempt() -> None:
    spans = Spans(1.0, 100, lambda: None)
    feed(spans, 7, [Event(150, ev.StepCaught(FAILURE, 120), step="a", attempt=1)])
    (span,) = fetched(spans)
    assert (span.start_time_unix_nano, span.status.message) == (120, "it broke")


def test_sampling_takes_whole_runs_and_covenant_o_always() -> None:
    spans = Spans(0.25, 100_000, lambda: None)
    for workflow_id in range(400):
        feed(spans, workflow_id, [Event(200, ev.StepCompleted(150), step="a", attempt=1), Event(210, ev.Completed())])
    for workflow_id in range(400, 500):
        feed(spans, workflow_id, [Event(210, ev.Completed())], covenant="O")
    found = fetched(spans)
    traces = {span.trace_id for span in found}
    sampled = {trace_context.trace_id(one) for one in range(400) if trace_context.is_sampled(one, 0.25)}
    assert traces == sampled | {trace_context.trace_id(one) for one in range(400, 500)}
    assert len(found) == 2 * len(sampled) + 100


def test_what_is_inside_a_block_is_below_the_attempt_of_the_block() -> None:
    spans = Spans(1.0, 100, lambda: None)
    feed(
        spans,
        7,
        [
            Event(110, ev.StepOpened(count=2), step="each", attempt=2),
            Event(150, ev.StepCompleted(120), step="each[1]/inner", attempt=1),
            Event(200, ev.StepCompleted(), step="each", attempt=2),
            # The block began before a restart.
            Event(250, ev.StepCompleted(220), step="risky:catch/mend", attempt=1),
        ],
    )
    inner, block, mend = fetched(spans)
    assert inner.parent_span_id == block.span_id == trace_context.attempt_span_id(7, "each", 2)
    assert block.parent_span_id == trace_context.run_span_id(7)
    assert mend.parent_span_id == trace_context.run_span_id(7)


def test_what_nobody_fetches_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_QUEUED", 10)
    called: list[None] = []
    spans = Spans(1.0, 4, lambda: called.append(None))
    for workflow_id in range(25):
        feed(spans, workflow_id, [Event(210, ev.Completed())])
    assert (len(spans), spans.dropped, len(called)) == (10, 15, 2)
    assert [len(fetched(spans)) for _ in range(4)] == [4, 4, 2, 0]
    assert len(spans) == 0
    feed(spans, 25, [Event(210, ev.Completed())])
    assert (len(fetched(spans)), spans.dropped) == (1, 15)


def test_waits_that_nobody_ends_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITS", 10)
    spans = Spans(1.0, 100, lambda: None)
    for workflow_id in range(50):
        feed(spans, workflow_id, [Event(120, ev.TimerSet(500), step="a", attempt=1)])
    assert fetched(spans) == []
    assert len(spans._waits) == 10


@given(
    st.integers(0, (1 << 63) - 1),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    st.integers(1, 1 << 31),
    st.integers(1, (1 << 63) - 1),
)
def test_any_names_and_numbers_arrive_as_they_were(workflow_id: int, text: str, attempt: int, at_ns: int) -> None:
    spans = Spans(1.0, 100, lambda: None)
    events = [
        Event(at_ns, ev.StepFailed(Failure("KNHK-X", text), at_ns), step=text, attempt=attempt),
        Event(at_ns, ev.Failed(Failure("KNHK-X", text))),
    ]
    summary = Summary(workflow_id, name=text, department=text, submitted_at_ns=1)
    for event in events:
        fold(summary, event)
        spans.take(summary, event, text)
    step, run = fetched(spans)
    assert (step.name, run.name) == (text, text)
    assert attributes(run)["knhk.workflow.name"] == text
    assert attributes(run).get("knhk.department", "") == text == step.status.message
    assert attributes(step).get("knhk.action", "") == text
    assert attributes(step)["knhk.step.attempt"] == attempt
    assert (step.start_time_unix_nano, run.start_time_unix_nano, run.end_time_unix_nano) == (at_ns, 1, at_ns)
    assert step.kind == Span.SPAN_KIND_INTERNAL
    assert run.kind == Span.SPAN_KIND_SERVER
