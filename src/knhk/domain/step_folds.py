"""What happens to steps, taken into the state of their run."""

from typing import Final

from knhk.domain import event as ev
from knhk.domain.event import Event
from knhk.domain.frame import Frame, StepState
from knhk.domain.lease import Lease
from knhk.domain.plan import EndState
from knhk.domain.run_state import Run

_COMPLETED: Final = frozenset[EndState]({"completed"})
_FAILED: Final = frozenset[EndState]({"failed"})
_SKIPPED: Final = frozenset[EndState]({"skipped"})
_EITHER: Final = _COMPLETED | _FAILED


def started(run: Run, event: Event, detail: ev.StepStarted) -> None:
    """An attempt that must be known of before it begins."""
    frame, index = run.locate(event.step)
    frame.steps[index] = StepState.RUNNING
    position = frame.first_position + index
    run.started_deadlines[position] = detail.deadline_ns
    if detail.token:
        run.leases[event.step] = Lease.after(run.leases.get(event.step), event.attempt, detail)
    # A retry that was journaled as started is no longer waiting for its time; after a crash it is ready at once.
    if run.timer_at_ns and run.timer_at_ns.pop(position, None) is not None:
        run.make_ready(frame, index)


def completed(run: Run, event: Event, _detail: ev.StepCompleted) -> None:
    """A step is done, and those that only waited for it may run."""
    frame: Frame = run
    index = run.block.index_of.get(event.step, -1)
    if index < 0:
        frame, index = run.locate(event.step)
    attempt_ended(run, frame, index, event, StepState.COMPLETED)
    frame.completed += 1
    frame.output_seqs[index] = run.seq
    frame.output_digests[index] = event.output_digest
    if frame.parent is not None or not frame.block.plain:
        _let_go(run, frame, index, _COMPLETED)
        return
    remaining, ready, queued = frame.remaining, frame.ready, frame.queued
    for dependent in frame.block.steps[index].dependents:
        remaining[dependent] -= 1
        if not remaining[dependent]:
            queued[dependent] = 1
            ready.append(dependent)


def failed(run: Run, event: Event, detail: ev.StepFailed) -> None:
    """A step failed for good."""
    frame, index = run.locate(event.step)
    attempt_ended(run, frame, index, event, StepState.FAILED)
    run.failures[frame.first_position + index] = detail.failure
    step = frame.step(index)
    if step.failure_is_handled:
        frame.others += 1
        _let_go(run, frame, index, _EITHER if step.continue_on_error else _FAILED)
    elif frame.first_failed < 0:
        frame.first_failed = index


def skipped(run: Run, event: Event, _detail: ev.StepSkipped) -> None:
    """A step is not run: its condition does not hold, or it depends on one that ended in another way."""
    frame, index = run.locate(event.step)
    frame.steps[index] = StepState.SKIPPED
    frame.queued[index] = 0
    frame.others += 1
    _let_go(run, frame, index, _SKIPPED)


def retrying(run: Run, event: Event, detail: ev.StepRetrying) -> None:
    """An attempt failed, and there will be another."""
    frame, index = run.locate(event.step)
    position = attempt_ended(run, frame, index, event, StepState.RETRYING)
    run.failures[position] = detail.failure
    run.set_timer(position, detail.next_at_ns, event.at_ns)


def timer_set(run: Run, event: Event, detail: ev.TimerSet) -> None:
    """A step waits for a time."""
    frame, index = run.locate(event.step)
    position = attempt_ended(run, frame, index, event, StepState.WAITING)
    frame.output_seqs[index] = run.seq
    run.set_timer(position, detail.fire_at_ns, event.at_ns)


def attempt_ended(run: Run, frame: Frame, index: int, event: Event, state: StepState) -> int:
    """An attempt at a step came to something; the step's position."""
    frame.steps[index] = state
    frame.queued[index] = 0
    frame.attempts[index] = event.attempt
    position = frame.first_position + index
    if run.started_deadlines:
        run.started_deadlines.pop(position, None)
    if run.timer_at_ns:
        run.timer_at_ns.pop(position, None)
        run.since_ns.pop(position, None)
    if run.waits is not None:
        run.waits.forget(position)
    return position


def _let_go(run: Run, frame: Frame, index: int, ways: frozenset[EndState]) -> None:
    """A step has ended in one of these ways: each dependent is a step nearer to running, or to being skipped."""
    remaining, steps = frame.remaining, frame.block.steps
    for dependent in steps[index].dependents:
        remaining[dependent] -= 1
        if not ways & steps[dependent].accepts.get(index, _COMPLETED):
            if frame.doomed is None:
                frame.doomed = set()
            frame.doomed.add(dependent)
        if remaining[dependent]:
            continue
        if frame.doomed and dependent in frame.doomed:
            run.skips.append(frame.first_position + dependent)
        else:
            run.make_ready(frame, dependent)
