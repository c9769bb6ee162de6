"""A run as a fold over its receipts: `apply` takes in what happened, `decide` says what to do next.

`apply` mutates one Run deterministically; its cost does not grow with the number of steps (but for the rare events that
reset steps). `decide` only reads the state, takes what is ready from the run's queues and returns commands; the
scheduler carries them out and turns what comes of them into events. Starting and resuming are the same: after a crash
`decide` sees a run whose queues hold everything that was not finished.
"""

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from heapq import heappop, heappush
from typing import Any, Final

import msgspec

from knhk.domain import event as ev
from knhk.domain.event import Event, Failure
from knhk.domain.plan import Plan, RetryPolicy, Step


class RunState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


class StepState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    RETRYING = "retrying"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED: Final = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT})
RETRYABLE: Final = frozenset({RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT})


class RunStep(msgspec.Struct, frozen=True):
    """Perform an attempt. `deadline_ns` is the one that was journaled before a crash, 0 if there is none."""

    index: int
    attempt: int
    deadline_ns: int = 0


class FireTimer(msgspec.Struct, frozen=True):
    """A step's timer is due: the step completes."""

    index: int


class FailLost(msgspec.Struct, frozen=True):
    """An `at_most_once` step was started and its outcome is unknown: it must not run again."""

    index: int
    attempt: int


class Finish(msgspec.Struct, frozen=True):
    """Nothing is left to do: the run completed, or failed with what its first failed step says."""

    failure: Failure | None


class Expire(msgspec.Struct, frozen=True):
    """The run's deadline has passed."""


Command = RunStep | FireTimer | FailLost | Finish | Expire


class Run:
    """The state of one run.

    `seq` is the number of receipts applied. Per-step lists are indexed like `plan.steps`. `ready` holds steps that may
    run, once each: an entry counts while its byte in `queued` is set, what meanwhile moved on is passed over. `timers`
    is a heap of (Unix time in ns, step index) for steps that wait or retry. `in_flight` counts attempts that this
    process is performing; it is no part of the fold.
    """

    __slots__ = (
        "attempts",
        "base_attempts",
        "completed",
        "deadline_ns",
        "ended_at_ns",
        "erased",
        "failure",
        "failures",
        "first_failed",
        "in_flight",
        "output_digests",
        "output_seqs",
        "plan",
        "queued",
        "ready",
        "remaining",
        "results_root",
        "seq",
        "started_at_ns",
        "started_deadlines",
        "state",
        "steps",
        "submitted",
        "submitted_at_ns",
        "timer_at_ns",
        "timers",
        "workflow_id",
    )

    def __init__(self, workflow_id: int, plan: Plan) -> None:
        count = len(plan.steps)
        self.workflow_id = workflow_id
        self.plan = plan
        self.seq = 0
        self.state = RunState.PENDING
        self.submitted: ev.Submitted | None = None
        self.submitted_at_ns = self.started_at_ns = self.ended_at_ns = self.deadline_ns = 0
        self.steps = [StepState.PENDING] * count
        self.attempts = [0] * count
        self.base_attempts: dict[int, int] = {}
        self.remaining = [len(step.depends_on) for step in plan.steps]
        self.output_seqs = [-1] * count
        self.output_digests = [b""] * count
        self.ready: deque[int] = deque()
        self.queued = bytearray(count)
        self.timers: list[tuple[int, int]] = []
        self.timer_at_ns: dict[int, int] = {}
        self.started_deadlines: dict[int, int] = {}
        self.completed = 0
        self.in_flight = 0
        self.first_failed = -1
        self.failures: dict[int, Failure] = {}
        self.failure: Failure | None = None
        self.results_root = b""
        self.erased = False

    @property
    def ended(self) -> bool:
        """Whether the run is in one of its end states."""
        return self.state in ENDED

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done before a timer is due or somebody asks for something."""
        return not self.in_flight and (self.state is not RunState.RUNNING or not self.ready)

    def wake_at_ns(self) -> int:
        """When `decide` must be asked again at the latest (Unix time in ns), 0 if time alone changes nothing."""
        deadline = self.deadline_ns
        timers, current = self.timers, self.timer_at_ns
        while timers and current.get(timers[0][1]) != timers[0][0]:
            heappop(timers)  # The step moved on. Without these the answer is the same in memory and after a fold.
        # Once a step has failed for good, no timer begins anything: only the attempts under way are waited for.
        if self.state is RunState.RUNNING and self.timers and self.first_failed < 0:
            first = self.timers[0][0]
            return min(first, deadline) if deadline else first
        return deadline if not self.ended else 0


def apply(run: Run, event: Event) -> None:
    """Take one event into the run's state. Events of a valid chain never raise."""
    _APPLY[type(event.detail)](run, event, event.detail)
    run.seq += 1


def _submitted(run: Run, event: Event, detail: ev.Submitted) -> None:
    run.submitted = detail
    run.submitted_at_ns = event.at_ns


def _started(run: Run, event: Event, detail: ev.Started) -> None:
    run.state = RunState.RUNNING
    run.started_at_ns = event.at_ns
    run.deadline_ns = detail.deadline_ns
    for index, count in enumerate(run.remaining):
        if not count:
            _enqueue(run, index)


def _enqueue(run: Run, index: int) -> None:
    run.queued[index] = 1
    run.ready.append(index)


def _paused(run: Run, _event: Event, _detail: ev.Paused) -> None:
    run.state = RunState.PAUSED


def _resumed(run: Run, _event: Event, _detail: ev.Resumed) -> None:
    run.state = RunState.RUNNING if run.started_at_ns else RunState.PENDING


def _retried(run: Run, event: Event, detail: ev.Retried) -> None:
    run.state = RunState.RUNNING
    run.deadline_ns = detail.deadline_ns
    run.started_at_ns = run.started_at_ns or event.at_ns
    run.ended_at_ns = 0
    run.failure = None
    run.first_failed = -1
    run.failures.clear()
    run.timers.clear()
    run.timer_at_ns.clear()
    run.started_deadlines.clear()
    for name in detail.steps:
        index = run.plan.index_of[name]
        run.steps[index] = StepState.PENDING
        run.base_attempts[index] = run.attempts[index]
    run.ready.clear()
    run.queued = bytearray(len(run.steps))
    for index, state in enumerate(run.steps):
        if state is StepState.PENDING and not run.remaining[index]:
            _enqueue(run, index)


def _end(run: Run, event: Event, state: RunState, failure: Failure | None) -> None:
    run.state = state
    run.ended_at_ns = event.at_ns
    run.failure = failure
    run.ready.clear()
    for index in run.timer_at_ns:
        run.steps[index] = StepState.CANCELLED
    for index in run.started_deadlines:
        run.steps[index] = StepState.CANCELLED
    run.timers.clear()
    run.timer_at_ns.clear()


def _completed(run: Run, event: Event, detail: ev.Completed) -> None:
    _end(run, event, RunState.COMPLETED, None)
    run.results_root = detail.results_root


def _failed(run: Run, event: Event, detail: ev.Failed) -> None:
    _end(run, event, RunState.FAILED, detail.failure)


def _cancelled(run: Run, event: Event, detail: ev.Cancelled) -> None:
    _end(run, event, RunState.CANCELLED, cancelled_because(detail.reason))


def cancelled_because(reason: str) -> Failure:
    """What a cancelled run says of its end."""
    return Failure("KNHK-RUN-CANCELLED", f"cancelled: {reason}" if reason else "cancelled")


def _timed_out(run: Run, event: Event, detail: ev.TimedOut) -> None:
    _end(run, event, RunState.TIMED_OUT, detail.failure)


def _step_started(run: Run, event: Event, detail: ev.StepStarted) -> None:
    index = run.plan.index_of[event.step]
    run.steps[index] = StepState.RUNNING
    run.started_deadlines[index] = detail.deadline_ns
    if run.timer_at_ns:
        _retry_began(run, index)


def _retry_began(run: Run, index: int) -> None:
    """A retry that was journaled as started is no longer waiting for its time; after a crash it is ready at once."""
    if run.timer_at_ns.pop(index, None) is not None:
        _enqueue(run, index)


def _step_completed(run: Run, event: Event, _detail: ev.StepCompleted) -> None:
    index = _step_ended(run, event, StepState.COMPLETED)
    run.completed += 1
    run.output_seqs[index] = run.seq
    run.output_digests[index] = event.output_digest
    remaining, ready, queued = run.remaining, run.ready, run.queued
    for dependent in run.plan.steps[index].dependents:
        remaining[dependent] -= 1
        if not remaining[dependent]:
            queued[dependent] = 1
            ready.append(dependent)


def _step_failed(run: Run, event: Event, detail: ev.StepFailed) -> None:
    index = _step_ended(run, event, StepState.FAILED)
    run.failures[index] = detail.failure
    if run.first_failed < 0:
        run.first_failed = index


def _step_ended(run: Run, event: Event, state: StepState) -> int:
    index = run.plan.index_of[event.step]
    run.steps[index] = state
    run.queued[index] = 0
    run.attempts[index] = event.attempt
    if run.started_deadlines:
        run.started_deadlines.pop(index, None)
    if run.timer_at_ns:
        run.timer_at_ns.pop(index, None)
    return index


def _step_retrying(run: Run, event: Event, detail: ev.StepRetrying) -> None:
    index = _step_ended(run, event, StepState.RETRYING)
    run.failures[index] = detail.failure
    _set_timer(run, index, detail.next_at_ns)


def _timer_set(run: Run, event: Event, detail: ev.TimerSet) -> None:
    index = run.plan.index_of[event.step]
    run.steps[index] = StepState.WAITING
    run.queued[index] = 0
    run.output_seqs[index] = run.seq
    run.attempts[index] = event.attempt
    run.started_deadlines.pop(index, None)
    _set_timer(run, index, detail.fire_at_ns)


def _set_timer(run: Run, index: int, at_ns: int) -> None:
    run.timer_at_ns[index] = at_ns
    heappush(run.timers, (at_ns, index))


def _nothing(_run: Run, _event: Event, _detail: Any) -> None:
    """The event is a fact that changes nothing in the state: what follows from it is an event of its own."""


def _payload_erased(run: Run, _event: Event, _detail: ev.PayloadErased) -> None:
    run.erased = True


_APPLY: Final[dict[type[ev.Detail], Callable[[Run, Event, Any], None]]] = {
    ev.Submitted: _submitted,
    ev.Started: _started,
    ev.Paused: _paused,
    ev.Resumed: _resumed,
    ev.Retried: _retried,
    ev.Completed: _completed,
    ev.Failed: _failed,
    ev.Cancelled: _cancelled,
    ev.TimedOut: _timed_out,
    ev.StepStarted: _step_started,
    ev.StepCompleted: _step_completed,
    ev.StepFailed: _step_failed,
    ev.StepRetrying: _step_retrying,
    ev.TimerSet: _timer_set,
    ev.TimerFired: _nothing,
    ev.PayloadErased: _payload_erased,
}


def decide(run: Run, now_ns: int, limit: int = 1 << 30) -> list[Command]:
    """What to do next: at most `limit` attempts, taken from the run's queues (so each is returned once)."""
    if run.state is RunState.RUNNING:
        if run.deadline_ns and now_ns >= run.deadline_ns:
            return [Expire()]
        commands: list[Command] = []
        if run.first_failed < 0:
            if run.timers:
                _take_due(run, now_ns, commands)
            if run.ready:
                _take_ready(run, limit, commands)
            if not commands and run.completed == len(run.steps):
                return [Finish(None)]
        elif not run.in_flight:
            # Attempts that were under way when a step failed are let finish: what they did must be known to a retry.
            name = run.plan.steps[run.first_failed].name
            return [Finish(msgspec.structs.replace(run.failures[run.first_failed], step=name))]
        return commands
    if run.state is RunState.PAUSED and run.deadline_ns and now_ns >= run.deadline_ns:
        return [Expire()]
    return []


def _take_due(run: Run, now_ns: int, commands: list[Command]) -> None:
    while run.timers and run.timers[0][0] <= now_ns:
        at_ns, index = heappop(run.timers)
        if run.timer_at_ns.get(index) != at_ns:
            continue  # The step moved on after this timer was set.
        del run.timer_at_ns[index]
        if run.steps[index] is StepState.WAITING:
            commands.append(FireTimer(index))
        else:
            _enqueue(run, index)


def _take_ready(run: Run, limit: int, commands: list[Command]) -> None:
    while run.ready and len(commands) < limit:
        index = run.ready.popleft()
        if not run.queued[index]:
            continue
        run.queued[index] = 0
        state = run.steps[index]
        if state is StepState.PENDING or state is StepState.RETRYING:
            commands.append(RunStep(index, run.attempts[index] + 1))
        elif state is StepState.RUNNING:
            # Journaled as started, and not by this process: a crash came between.
            attempt = run.attempts[index] + 1
            if run.plan.steps[index].semantics == "at_most_once":
                commands.append(FailLost(index, attempt))
            else:
                commands.append(RunStep(index, attempt, run.started_deadlines.get(index, 0)))
            continue
        else:
            continue
        run.steps[index] = StepState.RUNNING


def retry_at_ns(policy: RetryPolicy, attempt: int, now_ns: int, uniform: float) -> int:
    """When the attempt after `attempt` (counted from 1) may start; `uniform` is drawn from [0, 1) for the jitter."""
    exponent = min(attempt - 1, 64)
    pause = min(float(policy.max_delay_ns), policy.delay_ns * policy.factor**exponent)
    return now_ns + int(pause * uniform if policy.jitter else pause)


def attempts_made(run: Run, index: int, attempt: int) -> int:
    """How many attempts count against the retry policy: those since an operator last reset the step."""
    return attempt - run.base_attempts.get(index, 0)


def steps_to_retry(run: Run) -> tuple[str, ...]:
    """The steps that a retry of the ended run resets: those that neither completed nor were never begun."""
    reset = {StepState.FAILED, StepState.CANCELLED, StepState.RUNNING, StepState.RETRYING, StepState.WAITING}
    return tuple(step.name for step, state in zip(run.plan.steps, run.steps, strict=True) if state in reset)


def begun_at_most_once(run: Run) -> list[Step]:
    """The at_most_once steps that have begun and not completed: a retry may not run them again."""
    return [
        step
        for step, state in zip(run.plan.steps, run.steps, strict=True)
        if step.semantics == "at_most_once" and state not in (StepState.PENDING, StepState.COMPLETED)
    ]
