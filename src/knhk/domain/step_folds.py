"""What happens to steps, taken into the state of their run. What opens and closes frames is in frame_folds.py."""

from typing import Final

from knhk.domain import event as ev
from knhk.domain.event import Event, is_final
from knhk.domain.frame import Done, Frame, InnerFrame, Role, StepState
from knhk.domain.lease import Lease
from knhk.domain.plan import Directed, EndState, Parallel
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


def completed(run: Run, event: Event, detail: ev.StepCompleted | ev.StepReused) -> None:
    """A step is done, and those that only waited for it may run."""
    frame: Frame = run
    index = run.block.index_of.get(event.step, -1)
    if index < 0:
        frame, index = run.locate(event.step)
    attempt_ended(run, frame, index, event, StepState.COMPLETED)
    frame.completed += 1
    frame.output_seqs[index] = run.seq
    frame.output_digests[index] = event.output_digest
    if frame is not run or not frame.block.plain:
        step = frame.step(index)
        if step.compensate is not None and isinstance(detail, ev.StepCompleted):  # not what another run has done
            note_done(frame, [Done(event.step, step, run.seq)])
        _settle(run, frame, index, _COMPLETED, event)
        return
    remaining, ready, queued = frame.remaining, frame.ready, frame.queued
    for dependent in frame.block.steps[index].dependents:
        remaining[dependent] -= 1
        if not remaining[dependent]:
            queued[dependent] = 1
            ready.append(dependent)


def reused(run: Run, event: Event, detail: ev.StepReused) -> None:
    """A step has what another gave. It is done, but this run has done nothing that could be undone."""
    frame, index = run.locate(event.step)
    position = frame.first_position + index
    completed(run, event, detail)
    if run.reused is None:
        run.reused = {}
    run.reused[position] = detail


def failed(run: Run, event: Event, detail: ev.StepFailed) -> None:
    """A step failed for good."""
    frame, index = run.locate(event.step)
    position = attempt_ended(run, frame, index, event, StepState.FAILED)
    run.failures[position] = detail.failure
    step = frame.step(index)
    if not is_final(detail.failure) or (isinstance(frame, InnerFrame) and frame.role >= Role.UNWIND):
        if step.failure_is_handled:
            frame.others += 1
            return _settle(run, frame, index, _EITHER if step.continue_on_error else _FAILED, event)
        if isinstance(frame, InnerFrame) and frame.tolerance:
            frame.first_failure = frame.first_failure or detail.failure
            frame.tolerance -= 1
            frame.others += 1
            return _settle(run, frame, index, _FAILED, event)
    if frame.first_failed < 0:
        frame.first_failed = index
        _close(run, frame)
    return None


def skipped(run: Run, event: Event, _detail: ev.StepSkipped) -> None:
    """A step is not run: its condition does not hold, or it depends on one that ended in another way."""
    frame, index = run.locate(event.step)
    frame.steps[index] = StepState.SKIPPED
    frame.queued[index] = 0
    frame.others += 1
    _settle(run, frame, index, _SKIPPED, event)


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
    """A step has left the state in which an attempt was under way. Returns its position."""
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
    if frame.children and (child := frame.children.get(index)) is not None:
        note_done(frame, child.take_done())
        if state is StepState.FAILED:
            run.put_away(child)
        else:
            run.drop(child)
    return position


def _settle(run: Run, frame: Frame, index: int, ways: frozenset[EndState], event: Event) -> None:
    """A step has ended in one of these ways: each dependent is a step nearer to running, or to being skipped."""
    remaining = frame.remaining
    for dependent in frame.step(index).dependents:
        remaining[dependent] -= 1
        if not ways & frame.step(dependent).accepts.get(index, _COMPLETED):
            if frame.doomed is None:
                frame.doomed = set()
            frame.doomed.add(dependent)
        if remaining[dependent]:
            continue
        if frame.doomed and dependent in frame.doomed:
            run.skips.append(frame.first_position + dependent)
        else:
            run.make_ready(frame, dependent)
    if not isinstance(frame, InnerFrame):
        return
    if frame.block.repeats:
        start_more(run, frame)
    elif "completed" in ways and frame.winner < 0 and _competes(frame):
        frame.winner = index
        _close(run, frame)
    if frame.is_done:
        _close(run, frame)


def start_more(run: Run, frame: InnerFrame) -> None:
    """Let further instances of what is repeated run, as many as may at a time."""
    under_way = frame.started - frame.completed - frame.others - len(frame.again)
    while frame.again and under_way < frame.concurrency:
        run.make_ready(frame, frame.again.pop())
        under_way += 1
    while frame.started < len(frame.steps) and under_way < frame.concurrency:
        run.make_ready(frame, frame.started)
        frame.started += 1
        under_way += 1


def note_done(frame: Frame, done: list[Done]) -> None:
    """Something was done in a frame, or in one inside it that ends, that can be undone."""
    if done:
        frame.done = (frame.done or []) + done


def _competes(frame: InnerFrame) -> bool:
    if frame.role is not Role.BODY:
        return False
    body = frame.parent.step(frame.index).body
    return isinstance(body, Parallel | Directed) and body.compete


def _close(run: Run, frame: Frame) -> None:
    if isinstance(frame, InnerFrame) and run.inner is not None:
        run.inner.closing[frame.number] = frame
