"""Trace ids: they follow from the workflow id, sampling keeps its share, headers go there and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain import trace_context
from knhk.domain.trace_context import SpanContext, attempt_context, attempt_span_id, is_sampled, parse, run_span_id

IDS = st.integers(0, (1 << 63) - 1)


@given(IDS, st.text(), st.integers(1, 10_000))
def test_ids_are_the_same_every_time_and_differ_from_each_other(workflow_id: int, step: str, attempt: int) -> None:
    ids = [
        run_span_id(workflow_id),
        run_span_id(workflow_id, 1),
        attempt_span_id(workflow_id, step, attempt),
        attempt_span_id(workflow_id, step, attempt + 1),
        attempt_span_id(workflow_id, step + "x", attempt),
    ]
    assert len(set(ids)) == len(ids)
    assert ids[2] == attempt_span_id(workflow_id, step, attempt)
    assert len(trace_context.trace_id(workflow_id)) == 16


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.booleans())
def test_a_header_names_the_span_that_it_was_made_of(trace: bytes, span: bytes, sampled: bool) -> None:
    made = SpanContext(trace, span, sampled)
    assert parse(made.header()) == (made if any(trace) and any(span) else None)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "0" * 16 + "-01",
        "ff-" + "1" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "A" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-01-more",
        "00-" + "1" * 31 + "-" + "1" * 16 + "-01",
    ],
)
def test_what_is_no_traceparent_names_nothing(header: str) -> None:
    assert parse(header) is None


def test_a_later_version_may_say_more() -> None:
    assert parse("01-" + "1" * 32 + "-" + "1" * 16 + "-01-more") is not None


def test_sampling_keeps_its_share_and_its_mind() -> None:
    runs = range(10_000)
    tenth = {run for run in runs if is_sampled(run, 0.1)}
    assert 800 < len(tenth) < 1_200
    assert tenth == {run for run in runs if is_sampled(run, 0.1)}
    assert tenth < {run for run in runs if is_sampled(run, 0.5)}  # a higher rate keeps what a lower one kept
    assert not any(is_sampled(run, 0.0) for run in runs)
    assert all(is_sampled(run, 0.0, "O") for run in runs)
    assert attempt_context(1, "a", 1, 0.0, "O").sampled
    assert attempt_context(1, "a", 1, 0.0, "Sigma").header().endswith("-00")
