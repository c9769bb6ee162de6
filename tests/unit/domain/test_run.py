"""The fold of a run: any DAG, any outcomes, a crash at any point."""

import time
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain import event as ev
from knhk.domain.event import Event, Failure
from knhk.domain.plan import Plan, RetryPolicy
from knhk.domain.run import (
    ENDED,
    Command,
    Expire,
    FailLost,
    Finish,
    FireTimer,
    Run,
    RunState,
    RunStep,
    StepState,
    apply,
    attempts_made,
    begun_at_most_once,
    decide,
    retry_at_ns,
    steps_to_retry,
)
from tests.unit.domain.plans import plan, plans

FAILURE = Failure("TEST", "it failed")
SECOND = 1_000_000_000
OUTCOMES = ("complete", "complete", "complete", "retry", "fail", "wait")


class Conductor:
    """Carries a run forward as the engine does, but with outcomes from a list, and can lose its memory at any time.

    `journal` is all that outlives a crash. `performed` are the attempts in the order in which they began.
    """

    def __init__(self, plan: Plan, outcomes: st.DataObject | None, crashes: frozenset[int] = frozenset()) -> None:
        self.plan, self._data, self._crashes = plan, outcomes, crashes
        self.journal: list[Event] = []
        self.performed: list[tuple[int, int]] = []
        self.now_ns = SECOND
        self.run = Run(1, plan)
        self.flying: dict[int, int] = {}
        self._moves = 0
        self.add(ev.Submitted("test", steps=len(plan.steps)))
        self.add(ev.Started(deadline_ns=self.now_ns + plan.timeout_ns if plan.timeout_ns else 0))

    def add(self, detail: ev.AnyDetail, index: int = -1, attempt: int = 0) -> None:
        step = self.plan.steps[index].name if index >= 0 else ""
        event = Event(self.now_ns, detail, step=step, attempt=attempt)
        self.journal.append(event)
        apply(self.run, event)

    def crash(self) -> None:
        """Forget everything and fold what is journaled."""
        self.flying.clear()
        self.run = folded(self.plan, self.journal)

    def conduct(self) -> Run:
        """Go on until the run has ended."""
        for _ in range(1000):
            if self.run.ended:
                return self.run
            self._moves += 1
            if self._moves in self._crashes:
                self.crash()
            self._obey()
            if self.flying:
                self._end_one()
            elif not self.run.ended:
                wake = self.run.wake_at_ns()
                assert wake or self.run.ready, f"stuck: {self.run.steps}"
                self.now_ns = max(self.now_ns, wake)
        raise AssertionError("never ended")

    def _obey(self) -> None:
        while commands := decide(self.run, self.now_ns):
            for command in commands:
                self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case RunStep(index, attempt):
                self._begin(index, attempt)
            case FireTimer(index):
                self.add(ev.TimerFired(), index)
                self.add(ev.StepCompleted(), index, self.run.attempts[index])
            case FailLost(index, attempt):
                assert self.plan.steps[index].semantics == "at_most_once"
                self.add(ev.StepFailed(FAILURE), index, attempt)
            case Finish(None):
                self.add(ev.Completed())
            case Finish(failure):
                assert failure is not None
                self.add(ev.Failed(failure))
            case Expire():
                self.add(ev.TimedOut(FAILURE))

    def _begin(self, index: int, attempt: int) -> None:
        step = self.plan.steps[index]
        assert index not in self.flying, f"{step.name} is under way already"
        for one in step.depends_on:
            assert self.run.steps[one] is StepState.COMPLETED, f"{step.name} before {self.plan.steps[one].name}"
        assert self.run.timer_at_ns.get(index, 0) <= self.now_ns, f"{step.name} before its time"
        if step.semantics == "at_most_once":
            assert index not in [began for began, _ in self.performed], f"{step.name} a second time"
            self.add(ev.StepStarted(), index, attempt)
        self.performed.append((index, attempt))
        self.flying[index] = attempt
        self.run.in_flight += 1

    def _end_one(self) -> None:
        if self._data is None:
            index, outcome = min(self.flying), "complete"
        else:
            index = self._data.draw(st.sampled_from(sorted(self.flying)))
            outcome = self._data.draw(st.sampled_from(OUTCOMES))
        attempt = self.flying.pop(index)
        self.run.in_flight -= 1
        once = self.plan.steps[index].semantics == "at_most_once"
        spent = attempts_made(self.run, index, attempt) >= self.plan.steps[index].retry.max_attempts
        match outcome:
            case "complete":
                self.add(ev.StepCompleted(), index, attempt)
            case "retry" if not (once or spent or self.run.first_failed >= 0):
                self.add(ev.StepRetrying(FAILURE, self.now_ns + SECOND), index, attempt)
            case "wait":
                self.add(ev.TimerSet(self.now_ns + 5 * SECOND), index, attempt)
            case _:
                self.add(ev.StepFailed(FAILURE), index, attempt)


def folded(plan: Plan, events: list[Event]) -> Run:
    run = Run(1, plan)
    for event in events:
        apply(run, event)
    return run


def facts(run: Run, taken: Collection[int] = ()) -> dict[str, Any]:
    """The fold: what must be the same however the events were taken in.

    What this process has just taken from the queues (attempts, timers that are due) and not journaled is left out.
    """
    return {
        "seq": run.seq,
        "state": run.state,
        "attempts": run.attempts,
        "completed": run.completed,
        "remaining": run.remaining,
        "failure": run.failure,
        "first_failed": run.first_failed,
        "timers": {index: at_ns for index, at_ns in run.timer_at_ns.items() if index not in taken},
        "ended": run.ended_at_ns,
        "steps": [state for index, state in enumerate(run.steps) if index not in taken],
    }


@given(plans(), st.data())
def test_any_run_ends_once_with_every_step_after_its_dependencies(plan: Plan, data: st.DataObject) -> None:
    conductor = Conductor(plan, data)
    run = conductor.conduct()
    assert run.state in (RunState.COMPLETED, RunState.FAILED)
    ends = [event for event in conductor.journal if isinstance(event.detail, ev.Completed | ev.Failed)]
    assert len(ends) == 1
    completed = [event.step for event in conductor.journal if isinstance(event.detail, ev.StepCompleted)]
    assert len(completed) == len(set(completed)) == run.completed
    assert (run.state is RunState.COMPLETED) == (run.completed == len(plan.steps))
    assert len(conductor.performed) == len(set(conductor.performed)), "no attempt is made twice"
    assert decide(run, conductor.now_ns + 10**18) == []


@given(plans(), st.data(), st.frozensets(st.integers(1, 40)))
def test_crashes_at_any_points_change_nothing_of_what_is_promised(
    plan: Plan, data: st.DataObject, crashes: frozenset[int]
) -> None:
    """The Conductor asserts: dependencies, pauses before retries, at most once, nothing twice at a time."""
    conductor = Conductor(plan, data, crashes)
    run = conductor.conduct()
    completed = [event.step for event in conductor.journal if isinstance(event.detail, ev.StepCompleted)]
    assert len(completed) == len(set(completed))
    assert run.state in (RunState.COMPLETED, RunState.FAILED)


@given(plans(), st.data())
def test_the_run_in_memory_is_at_all_times_the_fold_of_its_events(plan: Plan, data: st.DataObject) -> None:
    conductor = Conductor(plan, data)
    obey = conductor._obey

    def obey_and_compare() -> None:
        obey()
        again, taken = folded(plan, conductor.journal), conductor.flying
        assert facts(again, taken) == facts(conductor.run, taken)
        if not taken:
            assert again.wake_at_ns() == conductor.run.wake_at_ns()

    conductor._obey = obey_and_compare  # type: ignore[method-assign]
    conductor.conduct()


@given(plans(), st.data())
def test_every_prefix_goes_on_to_the_same_end(plan: Plan, data: st.DataObject) -> None:
    """When every further step completes, it makes no difference after which event the process died."""
    conductor = Conductor(plan, None)
    end = facts(conductor.conduct())
    for cut in range(2, len(conductor.journal)):
        again = Conductor(plan, None)
        again.journal = conductor.journal[:cut]
        again.now_ns = conductor.now_ns
        again.crash()
        lost = any(again.run.steps[index] is StepState.RUNNING for index in again.run.started_deadlines)
        run = again.conduct()
        if lost:
            assert run.state is RunState.FAILED
        else:
            assert facts(run) | {"ended": 0} == end | {"ended": 0}


@given(plans(), st.data())
def test_an_ended_run_that_is_retried_goes_on_from_what_did_not_complete(plan: Plan, data: st.DataObject) -> None:
    conductor = Conductor(plan, data)
    run = conductor.conduct()
    for _ in range(20):
        if run.state is RunState.COMPLETED or begun_at_most_once(run):
            return
        done = {index for index, state in enumerate(run.steps) if state is StepState.COMPLETED}
        before = len(conductor.performed)
        conductor.crash()
        run = conductor.run
        conductor.add(ev.Retried(steps_to_retry(run)))
        run = conductor.conduct()
        assert not done & {index for index, _ in conductor.performed[before:]}
    assert run.state in ENDED


@given(plans(), st.data(), st.integers(1, 3))
def test_a_limit_only_spreads_the_attempts(plan: Plan, data: st.DataObject, limit: int) -> None:
    run = Conductor(plan, data).run
    everything = decide(folded(plan, Conductor(plan, None).journal[:2]), SECOND)
    spread = []
    while commands := decide(run, SECOND, limit):
        assert len(commands) <= limit
        spread += commands
    assert spread == everything


def started(*depends_on: list[int], **rest: Any) -> Conductor:
    return Conductor(plan(depends_on, **rest), None)


def test_a_retry_that_is_not_due_is_not_begun_after_a_crash() -> None:
    conductor = started([])
    conductor.add(ev.StepRetrying(FAILURE, 9 * SECOND), 0, 1)
    conductor.crash()
    assert decide(conductor.run, 8 * SECOND) == []
    assert conductor.run.wake_at_ns() == 9 * SECOND
    assert decide(conductor.run, 9 * SECOND) == [RunStep(0, 2)]
    assert decide(conductor.run, 99 * SECOND) == []


def test_a_second_attempt_that_was_journaled_as_started_is_taken_up_once() -> None:
    conductor = started([])
    conductor.add(ev.StepRetrying(FAILURE, 9 * SECOND), 0, 1)
    conductor.add(ev.StepStarted(deadline_ns=77), 0, 2)
    conductor.crash()
    assert decide(conductor.run, 9 * SECOND) == [RunStep(0, 2, 77)]
    assert decide(conductor.run, 99 * SECOND) == []


def test_a_journaled_start_of_an_at_most_once_step_is_lost_after_a_crash() -> None:
    conductor = started([], once=frozenset({0}))
    conductor.add(ev.StepStarted(), 0, 1)
    conductor.crash()
    assert decide(conductor.run, SECOND) == [FailLost(0, 1)]


def test_a_deadline_ends_a_running_and_a_paused_run_but_no_pending_one() -> None:
    conductor = started([], timeout_ns=5 * SECOND)
    assert decide(conductor.run, 6 * SECOND) == [Expire()]
    conductor.add(ev.Paused())
    assert decide(conductor.run, 5 * SECOND) == []
    assert decide(conductor.run, 6 * SECOND) == [Expire()]
    assert decide(folded(conductor.plan, conductor.journal[:1]), 10**18) == []


def test_a_paused_run_begins_nothing_and_wakes_only_for_its_deadline() -> None:
    conductor = started([], [], timeout_ns=50 * SECOND)
    conductor.add(ev.TimerSet(5 * SECOND), 0, 1)
    conductor.add(ev.Paused())
    assert decide(conductor.run, 6 * SECOND) == []
    assert conductor.run.wake_at_ns() == 51 * SECOND
    conductor.add(ev.Resumed())
    assert set(decide(conductor.run, 6 * SECOND)) == {FireTimer(0), RunStep(1, 1)}


def test_a_failure_waits_for_what_is_under_way_and_names_its_step() -> None:
    conductor = started([], [], [0])
    decide(conductor.run, SECOND)
    conductor.run.in_flight = 2
    conductor.add(ev.StepFailed(FAILURE), 1, 1)
    conductor.run.in_flight = 1
    assert decide(conductor.run, SECOND) == []
    conductor.add(ev.StepCompleted(), 0, 1)
    conductor.run.in_flight = 0
    assert decide(conductor.run, SECOND) == [Finish(Failure("TEST", "it failed", step="s1"))]


def test_an_ended_run_has_no_timers_and_its_waiting_steps_are_cancelled() -> None:
    conductor = started([], [])
    conductor.add(ev.TimerSet(5 * SECOND), 0, 1)
    conductor.add(ev.Cancelled("enough"))
    run = conductor.run
    assert (run.wake_at_ns(), run.steps[0], run.ready) == (0, StepState.CANCELLED, type(run.ready)())
    assert run.failure == Failure("KNHK-RUN-CANCELLED", "cancelled: enough")
    assert steps_to_retry(run) == ("s0",)


def test_an_event_costs_the_same_in_a_big_run() -> None:
    """Ten thousand events in a run of ten thousand steps take a fraction of a second."""
    conductor = started(*[[] for _ in range(10_000)])
    began = time.perf_counter()
    for index in range(10_000):
        conductor.add(ev.StepCompleted(), index, 1)
        decide(conductor.run, SECOND, 1)
    assert time.perf_counter() - began < 2
    assert conductor.run.completed == 10_000


@given(
    st.integers(1, 10_000),
    st.integers(0, 10**12),
    st.floats(1, 1000),
    st.integers(0, 10**13),
    st.floats(0, 1, exclude_max=True),
    st.booleans(),
)
def test_a_retry_is_never_in_the_past_nor_later_than_the_longest_pause(
    attempt: int, delay_ns: int, factor: float, max_delay_ns: int, uniform: float, jitter: bool
) -> None:
    policy = RetryPolicy(delay_ns=delay_ns, factor=factor, max_delay_ns=max_delay_ns, jitter=jitter)
    at_ns = retry_at_ns(policy, attempt, SECOND, uniform)
    assert SECOND <= at_ns <= SECOND + max_delay_ns
    if not jitter:
        later = retry_at_ns(policy, attempt + 1, SECOND, uniform)
        assert later >= at_ns
        assert at_ns >= SECOND + min(delay_ns, max_delay_ns)


@pytest.mark.parametrize(("attempt", "pause"), [(1, 100), (2, 200), (3, 400), (9, 25_600), (10, 30_000), (500, 30_000)])
def test_the_default_pauses_double_up_to_thirty_seconds(attempt: int, pause: int) -> None:
    policy = RetryPolicy(max_attempts=1000, jitter=False)
    assert retry_at_ns(policy, attempt, 0, 0.5) == pause * 1_000_000
    with_jitter = RetryPolicy(max_attempts=1000)
    assert retry_at_ns(with_jitter, attempt, 0, 0.5) == pause * 500_000
    assert retry_at_ns(with_jitter, attempt, 0, 0.0) == 0
