"""Where a run's time went, from receipts made by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.diagnostics.timing import critical_path, leaves, step_type, timing_of

MS = 1_000_000
BASE_MS = 1_700_000_000_000
"""The runs begin in 2023."""
STEPS = [
    {"name": "price", "action": "process", "depends_on": []},
    {"name": "stock", "action": "http", "depends_on": []},
    {"name": "charge", "action": "shop.charge", "depends_on": ["price", "stock"]},
]


def receipt(kind: str, at_ms: float, step: str = "", attempt: int = 0, **detail: Any) -> dict[str, Any]:
    for name in ("started_at", "queued", "next_at"):
        if f"{name}_ms" in detail:
            base = 0 if name == "queued" else BASE_MS
            detail[f"{name}_ns"] = int((base + detail.pop(f"{name}_ms")) * MS)
    return {
        "workflow_id": "wf-1",
        "kind": kind,
        "at_ns": int((BASE_MS + at_ms) * MS),
        "step": step,
        "attempt": attempt,
        "detail": detail,
    }


def spans(receipts: list[dict[str, Any]], now_ms: float = 10_000) -> list[tuple[str, str, float]]:
    path = critical_path(timing_of(receipts, STEPS, int((BASE_MS + now_ms) * MS)))
    return [(one.kind, one.step, one.took_ns / MS) for one in path]


def test_the_critical_path_goes_through_what_ended_last() -> None:
    receipts = [
        receipt("workflow.submitted", 100, name="order"),
        receipt("workflow.started", 130),
        receipt("step.completed", 131, "price", 1, started_at_ms=130),
        receipt("step.completed", 190, "stock", 1, started_at_ms=133),
        receipt("step.completed", 260, "charge", 1, started_at_ms=200, queued_ms=4),
        receipt("workflow.completed", 261),
    ]
    assert spans(receipts) == [
        ("queue", "", 30),
        ("commit", "stock", 3),
        ("execution", "stock", 57),
        ("commit", "charge", 6),
        ("queue", "charge", 4),
        ("execution", "charge", 60),
        ("engine", "", 1),
    ]


def test_retries_and_timers_are_told_apart_from_work() -> None:
    failure = {"code": "X", "message": "refused"}
    receipts = [
        receipt("workflow.submitted", 0, name="order"),
        receipt("workflow.started", 0),
        receipt("step.retrying", 10, "stock", 1, started_at_ms=0, failure=failure, next_at_ms=50),
        receipt("step.started", 52, "stock", 2),
        receipt("timer.set", 60, "stock", 2),
        receipt("timer.fired", 100, "stock", 2),
        receipt("step.completed", 100, "stock", 2, started_at_ms=0),
        receipt("workflow.completed", 100),
    ]
    timing = timing_of(receipts, STEPS, 0)
    assert [(one.kind, one.took_ns / MS) for one in critical_path(timing)] == [
        ("execution", 10),
        ("backoff", 40),
        ("queue", 2),
        ("execution", 8),
        ("waiting", 40),
    ]
    first, second = timing.steps["stock"].attempts
    assert (first.outcome, first.failure, second.outcome) == ("retrying", failure, "completed")
    assert timing.steps["stock"].state == "completed"


def test_a_run_that_has_not_ended_is_told_until_now() -> None:
    receipts = [
        receipt("workflow.submitted", 0, name="order"),
        receipt("workflow.started", 10),
        receipt("step.started", 20, "stock", 1),
    ]
    assert spans(receipts, 100) == [("queue", "", 10), ("commit", "stock", 10), ("execution", "stock", 80)]
    timing = timing_of([*receipts, receipt("workflow.cancelled", 60)], STEPS, (BASE_MS + 100) * MS)
    assert timing.steps["stock"].state == "cancelled"
    assert timing.took_ns == 60 * MS
    assert spans(receipts[:1], 100) == [("queue", "", 100)]


def test_pauses_and_retries_by_an_operator_are_nobody_s_time() -> None:
    receipts = [
        receipt("workflow.submitted", 0, name="order"),
        receipt("workflow.started", 0),
        receipt("step.failed", 10, "stock", 1, started_at_ms=0, failure={"code": "X", "message": "no"}),
        receipt("workflow.failed", 10),
        receipt("workflow.retried", 110),
        receipt("workflow.paused", 112),
        receipt("workflow.resumed", 120),
        receipt("step.completed", 150, "stock", 2, started_at_ms=121),
        receipt("workflow.completed", 150),
    ]
    by_kind: dict[str, float] = {}
    for kind, _, took in spans(receipts):
        by_kind[kind] = by_kind.get(kind, 0) + took
    assert by_kind == {"execution": 39, "paused": 108, "queue": 3}


def test_nested_steps_are_found_by_their_paths() -> None:
    receipts = [
        receipt("workflow.submitted", 0, name="order"),
        receipt("workflow.started", 0),
        receipt("step.completed", 10, "each[0]/a", 1, started_at_ms=0),
        receipt("step.completed", 40, "each[0]/b", 1, started_at_ms=12),
        receipt("step.completed", 30, "each[1]/a", 1, started_at_ms=0),
        receipt("step.completed", 90, "each[1]/b", 1, started_at_ms=35),
        receipt("step.completed", 91, "each", 1, started_at_ms=0),
        receipt("step.completed", 100, "after", 1, started_at_ms=92),
        receipt("workflow.completed", 100),
    ]
    steps = [
        {
            "name": "each",
            "depends_on": [],
            "steps": [{"name": "a", "action": "x"}, {"name": "b", "action": "y", "depends_on": ["a"]}],
        },
        {"name": "after", "action": "z", "depends_on": ["each"]},
    ]
    timing = timing_of(receipts, steps, 0)
    assert [step.path for step in leaves(timing)] == ["each[0]/a", "each[0]/b", "each[1]/a", "each[1]/b", "after"]
    assert timing.steps["each[1]/b"].action == "y"
    executed = [(one.step, one.took_ns / MS) for one in critical_path(timing) if one.kind == "execution"]
    assert executed == [("each[1]/a", 30), ("each[1]/b", 55), ("after", 8)]
    assert step_type("each[1]/b") == "each/b"


@pytest.mark.parametrize(
    "kinds", [("step.completed", "step.failed", "step.retrying", "timer.set", "step.started", "signal.received")]
)
@given(data=st.data())
def test_a_critical_path_leaves_nothing_out_whatever_the_receipts_say(
    kinds: tuple[str, ...], data: st.DataObject
) -> None:
    receipts, at = [receipt("workflow.submitted", 5, name="x")], 5
    for kind, step in data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(
                    (
                        *kinds,
                        "workflow.started",
                        "workflow.paused",
                        "workflow.resumed",
                        "workflow.failed",
                        "workflow.retried",
                    )
                ),
                st.sampled_from(("price", "stock", "charge", "g/a", "g[1]/a")),
            )
        )
    ):
        at += data.draw(st.integers(0, 50))
        detail = {
            "started_at_ms": data.draw(st.integers(0, at)),
            "queued_ms": data.draw(st.integers(0, 99)),
            "next_at_ms": at + data.draw(st.integers(0, 99)),
        }
        receipts.append(receipt(kind, at, "" if kind.startswith("workflow.") else step, 1, **detail))
    timing = timing_of(receipts, STEPS, (BASE_MS + at + 10) * MS)
    at_ns = timing.submitted_ns
    for segment in critical_path(timing):
        assert segment.from_ns == at_ns
        assert segment.to_ns > at_ns
        at_ns = segment.to_ns
    assert at_ns == max(timing.ended_ns, timing.submitted_ns)
