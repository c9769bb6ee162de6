"""A run as a fold over its receipts: `apply` takes in what happened, `decide` says what to do next.

`apply` mutates one Run deterministically; its cost does not grow with the number of steps (but for the rare events that
reset steps). `decide` only reads the state, takes what is ready from the run's queues and returns commands; the
scheduler carries them out and turns what comes of them into events. Starting and resuming are the same: after a crash
`decide` sees a run whose queues hold everything that was not finished.
"""

from collections.abc import Callable
from typing import Any, Final

from knhk.domain import event as ev
from knhk.domain import frame_folds, retry_folds, step_folds, unwinding, wait_folds
from knhk.domain.decisions import (
    Command,
    Deliver,
    EndFrame,
    Expire,
    ExpireStep,
    FailLost,
    Finish,
    FireTimer,
    RunStep,
    SkipStep,
    decide,
)
from knhk.domain.event import Event, Failure
from knhk.domain.frame import Frame, StepState
from knhk.domain.plan import RetryPolicy, Step, blocks_in
from knhk.domain.retry_folds import steps_to_resume
from knhk.domain.run_state import ENDED, RETRYABLE, Run, RunState


def apply(run: Run, event: Event) -> None:
    """Take one event into the run's state. Events of a valid chain never raise."""
    _APPLY[type(event.detail)](run, event, event.detail)
    if run.ending is not None:
        unwinding.go_on(run, event)
    run.seq += 1


def _submitted(run: Run, event: Event, detail: ev.Submitted) -> None:
    run.submitted = detail
    run.submitted_at_ns = event.at_ns


def _started(run: Run, event: Event, detail: ev.Started) -> None:
    run.state = RunState.RUNNING
    run.started_at_ns = event.at_ns
    run.deadline_ns = detail.deadline_ns
    for index in run.block.first:
        run.enqueue(index)


def _paused(run: Run, event: Event, detail: ev.Paused) -> None:
    run.note_decision("pause", detail.idempotency_key)
    run.state = RunState.PAUSED
    run.paused_at_ns = event.at_ns


def _resumed(run: Run, _event: Event, detail: ev.Resumed) -> None:
    run.note_decision("resume", detail.idempotency_key)
    run.state = RunState.RUNNING if run.started_at_ns else RunState.PENDING


def _end(run: Run, event: Event, state: RunState, failure: Failure | None) -> None:
    run.state = state
    run.ended_at_ns = event.at_ns
    run.failure = failure
    run.stop()


def _completed(run: Run, event: Event, detail: ev.Completed) -> None:
    _end(run, event, RunState.COMPLETED, None)
    run.results_root = detail.results_root


def _failed(run: Run, event: Event, detail: ev.Failed) -> None:
    _end(run, event, RunState.FAILED, detail.failure)


def _cancelled(run: Run, event: Event, detail: ev.Cancelled) -> None:
    run.note_decision("cancel", detail.idempotency_key)
    _end(run, event, RunState.CANCELLED, cancelled_because(detail.reason))


def cancelled_because(reason: str) -> Failure:
    """What a cancelled run says of its end."""
    return Failure("KNHK-RUN-CANCELLED", f"cancelled: {reason}" if reason else "cancelled")


def _timed_out(run: Run, event: Event, detail: ev.TimedOut) -> None:
    _end(run, event, RunState.TIMED_OUT, detail.failure)


def _nothing(_run: Run, _event: Event, _detail: Any) -> None:
    """The event is a fact that changes nothing in the state: what follows from it is an event of its own."""


def _payload_erased(run: Run, _event: Event, _detail: ev.PayloadErased) -> None:
    run.erased = True


_APPLY: Final[dict[type[ev.Detail], Callable[[Run, Event, Any], None]]] = {
    ev.Submitted: _submitted,
    ev.Started: _started,
    ev.Paused: _paused,
    ev.Resumed: _resumed,
    ev.Retried: retry_folds.retried,
    ev.Completed: _completed,
    ev.Failed: _failed,
    ev.Cancelled: _cancelled,
    ev.TimedOut: _timed_out,
    ev.StepStarted: step_folds.started,
    ev.StepCompleted: step_folds.completed,
    ev.StepFailed: step_folds.failed,
    ev.StepSkipped: step_folds.skipped,
    ev.StepEntered: frame_folds.entered,
    ev.StepOpened: frame_folds.opened,
    ev.StepCaught: frame_folds.caught,
    ev.StepUnwinding: unwinding.unwinding,
    ev.StepCompensated: unwinding.compensated,
    ev.Ending: unwinding.ending,
    ev.StepRetrying: step_folds.retrying,
    ev.TimerSet: step_folds.timer_set,
    ev.TimerFired: _nothing,
    ev.PayloadErased: _payload_erased,
    ev.StepReused: step_folds.reused,
    ev.StepWaiting: wait_folds.waiting,
    ev.SignalReceived: wait_folds.signal_received,
    ev.ApprovalGiven: wait_folds.approval_given,
    ev.ChildEnded: wait_folds.child_ended,
    ev.Settled: wait_folds.settled,
    ev.EventReceived: _nothing,
    ev.DefinitionPut: _nothing,
    ev.DefinitionRetired: _nothing,
    ev.RecoveryDrilled: _nothing,
    ev.ScalingDecided: _nothing,
    ev.ScalingEnded: _nothing,
}


def retry_at_ns(policy: RetryPolicy, attempt: int, now_ns: int, uniform: float) -> int:
    """When the attempt after `attempt` (counted from 1) may start; `uniform` is drawn from [0, 1) for the jitter."""
    exponent = min(attempt - 1, 64)
    pause = min(float(policy.max_delay_ns), policy.delay_ns * policy.factor**exponent)
    return now_ns + int(pause * uniform if policy.jitter else pause)


def attempts_made(run: Run, position: int, attempt: int) -> int:
    """How many attempts count against the retry policy: those since an operator last reset the step."""
    return attempt - run.base_attempts.get(position, 0)


def steps_to_retry(run: Run) -> tuple[str, ...]:
    """The steps that a retry of the ended run resets: those that neither ended well nor were never begun.

    What was compensated is done again, and so is everything that came after it.
    """
    steps = run.plan.steps
    reset = {step.index for step, state in zip(steps, run.steps, strict=True) if _is_reset(step, state)}
    undone = [step.index for step in steps if run.steps[step.index] is StepState.COMPENSATED]
    for index in undone:
        reset.add(index)
        undone += [one for one in steps[index].dependents if one not in reset and one not in undone]
    return tuple(step.name for step in steps if step.index in reset and run.steps[step.index] is not StepState.PENDING)


def _is_reset(step: Step, state: StepState) -> bool:
    return state in _RESET and not (state is StepState.FAILED and step.failure_is_handled)


_RESET: Final = {StepState.FAILED, StepState.CANCELLED, StepState.RUNNING, StepState.RETRYING, StepState.WAITING}


def begun_at_most_once(run: Run) -> list[Step]:
    """The at_most_once steps that a retry would run again, which must not be."""
    return [
        step
        for step, state in zip(run.plan.steps, run.steps, strict=True)
        if (_is_reset(step, state) or state is StepState.COMPENSATED) and runs_at_most_once(step)
    ]


def runs_at_most_once(step: Step) -> bool:
    """Whether a step, or one inside it, must not run twice."""
    if step.semantics == "at_most_once":
        return True
    return any(runs_at_most_once(one) for block in blocks_in(step) for one in block.steps)


__all__ = [
    "ENDED",
    "RETRYABLE",
    "Command",
    "Deliver",
    "EndFrame",
    "Expire",
    "ExpireStep",
    "FailLost",
    "Finish",
    "FireTimer",
    "Frame",
    "Run",
    "RunState",
    "RunStep",
    "SkipStep",
    "StepState",
    "apply",
    "attempts_made",
    "begun_at_most_once",
    "cancelled_because",
    "decide",
    "retry_at_ns",
    "runs_at_most_once",
    "steps_to_resume",
    "steps_to_retry",
]
