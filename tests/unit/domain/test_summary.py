"""The row of a run says what the run says."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain import event as ev
from knhk.domain import summary as rows
from knhk.domain.event import Event, Failure
from knhk.domain.run import Run, RunState, apply, steps_to_retry
from knhk.domain.summary import Summary
from tests.unit.domain.plans import plan

PLAN = plan([[], [0]])
FAILURE = Failure("TEST", "it failed", "rule", "s1")


def possible(run: Run) -> list[ev.AnyDetail]:
    """What an operator or the engine may let happen to the run now."""
    match run.state:
        case RunState.PENDING:
            return [ev.Started(9), ev.Paused(), ev.Cancelled("enough")]
        case RunState.RUNNING:
            return [
                ev.StepCompleted() if not run.completed else ev.Completed(),
                ev.Failed(FAILURE),
                ev.TimedOut(FAILURE),
                ev.Cancelled(),
                ev.Paused(),
            ]
        case RunState.PAUSED:
            return [ev.Resumed(), ev.Cancelled("enough"), ev.TimedOut(FAILURE)]
        case RunState.COMPLETED:
            return [ev.PayloadErased()]
        case _:
            return [ev.Retried(steps_to_retry(run)), ev.PayloadErased()]


@given(st.data())
def test_the_row_agrees_with_the_run_after_every_event(data: st.DataObject) -> None:
    run, row = Run(1, PLAN), Summary(1)
    detail: ev.AnyDetail = ev.Submitted("test", "sales", "cc-1", "O", 2, labels={"tier": "gold"})
    for number in range(data.draw(st.integers(1, 15))):
        event = Event(1_000 + number, detail, step="s0" if isinstance(detail, ev.StepCompleted) else "", attempt=1)
        apply(run, event)
        rows.fold(row, event)
        assert (row.state, row.completed, row.erased) == (run.state, run.completed, run.erased)
        assert (row.submitted_at_ns, row.started_at_ns) == (run.submitted_at_ns, run.started_at_ns)
        assert (row.ended_at_ns, row.failure) == (run.ended_at_ns, run.failure)
        assert rows.decode(rows.encode(row)) == row
        if run.erased:
            break
        detail = data.draw(st.sampled_from(possible(run)))
    assert (row.name, row.department, row.cost_center, row.covenant) == ("test", "sales", "cc-1", "O")
    assert (row.steps, dict(row.labels)) == (2, {"tier": "gold"})


def test_a_row_of_an_earlier_version_can_be_read() -> None:
    """Fields are only added at the end, with a default."""
    assert rows.decode(msgspec.msgpack.encode([7, "old"])) == Summary(7, "old")
