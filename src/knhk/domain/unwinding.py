"""How a run that will not complete is put right: what was done is compensated, then come `on_failure` and `finally`.

What has completed and can be undone is noted in its frame, and handed to the frame around it when that frame ends. A
failure that is dealt with in a step (a `catch`, another attempt, `continue_on_error`) first undoes what was done inside
of that step; a run that fails, is cancelled or times out undoes everything. Both open a frame whose steps are the
compensations, last done first, one at a time; one that fails is recorded, and the rest goes on.
"""

from typing import Final

from knhk.domain import event as ev
from knhk.domain.event import Event
from knhk.domain.frame import Done, Frame, Role, StepState
from knhk.domain.paths import outermost
from knhk.domain.plan import Block, block_of
from knhk.domain.run_state import Run, RunState
from knhk.domain.step_folds import start_more

_COMPENSATIONS: Final = block_of((), repeats=True)
_ROLES: Final = (Role.UNWIND, Role.ON_FAILURE, Role.FINALLY)


def done_inside(frame: Frame) -> list[Done]:
    """What was done in a frame and those inside it and can be undone, the last first."""
    found = list(frame.own_done())
    for child in (frame.children or {}).values():
        found += done_inside(child)
    return sorted(found, key=lambda one: -one.seq)


def instead_of(run: Run, detail: ev.Completed | ev.Failed | ev.Cancelled | ev.TimedOut) -> ev.AnyDetail:
    """The event with which a run ends, or the one with which it first begins to put things right, if it must."""
    if run.ending is not None or not run.started_at_ns:
        return detail
    match detail:
        case ev.Completed():
            ending = ev.Ending(RunState.COMPLETED)
        case ev.Failed(failure):
            ending = ev.Ending(RunState.FAILED, failure)
        case ev.TimedOut(failure):
            ending = ev.Ending(RunState.TIMED_OUT, failure)
        case ev.Cancelled(reason, key):
            ending = ev.Ending(RunState.CANCELLED, reason=reason, idempotency_key=key)
    undo = ending.state != RunState.COMPLETED and bool(done_inside(run))
    return ending if undo or any(_blocks(run, ending)) else detail


def ending(run: Run, event: Event, detail: ev.Ending) -> None:
    """A run will end, and first puts things right."""
    done = done_inside(run) if detail.state != RunState.COMPLETED else []
    run.stop()
    run.state = RunState.RUNNING
    run.deadline_ns = 0
    run.first_failed = -1
    run.queued = bytearray(len(run.steps))
    run.done = None
    run.ending = detail
    run.note_decision("cancel", detail.idempotency_key)
    next_phase(run, event, done)


def next_phase(run: Run, event: Event, done: list[Done], after: int = 0) -> None:
    """Open what comes next on the way to the end of a run: `after` is how many of the phases are over."""
    assert run.ending is not None
    on_failure, last = _blocks(run, run.ending)
    for number, role in enumerate(_ROLES[after:], after):
        if role is Role.UNWIND:
            if done:
                _undo(run, event, run, -1, done)
                return
            continue
        block = on_failure if number == 1 else last
        if block is not None:
            frame = run.open(block, run, -1, role, len(block.steps))
            frame.opened_at_ns = event.at_ns
            frame.tolerance = len(block.steps)  # A step that fails keeps only those from running that depend on it.
            for index in block.first:
                run.make_ready(frame, index)
            return


def go_on(run: Run, event: Event) -> None:
    """If a phase on the way to the end of a run is over, open the next."""
    frame = (run.children or {}).get(-1)
    if frame is None or not frame.is_done:
        return
    assert run.ending is not None
    if frame.role is Role.FINALLY and run.ending.failure is None and frame.first_failure is not None:
        run.finally_failed = frame.first_failure
    run.drop(frame)
    next_phase(run, event, [], _ROLES.index(frame.role) + 1)


def unwinding(run: Run, event: Event, detail: ev.StepUnwinding) -> None:
    """A step has failed, which is dealt with: first, what was done inside of it is undone."""
    frame, index = run.locate(event.step)
    position = frame.first_position + index
    assert frame.children is not None
    child = frame.children[index]
    done = done_inside(child)
    run.drop(child)
    run.timer_at_ns.pop(position, None)
    run.since_ns.pop(position, None)
    run.failures[position] = detail.failure
    _undo(run, event, frame, index, done)


def compensated(run: Run, event: Event, _detail: ev.StepCompensated) -> None:
    """What a step had done is undone; with it a step that had completed around it, which a retry does again."""
    if run.undone is None:
        run.undone = {}
    run.undone[event.step] = run.undone.get(event.step, 0) + 1
    index = run.block.index_of.get(event.step, -1)
    if index < 0:
        index = run.block.index_of.get(outermost(event.step), -1)
        if index < 0 or run.steps[index] is not StepState.COMPLETED:
            return
    run.steps[index] = StepState.COMPENSATED


def _undo(run: Run, event: Event, frame: Frame, index: int, done: list[Done]) -> None:
    opened = run.open(_COMPENSATIONS, frame, index, Role.UNWIND, len(done))
    opened.opened_at_ns = event.at_ns
    opened.undoes = done
    opened.tolerance = len(done)
    assert run.inner is not None
    for at, one in enumerate(done):
        run.inner.undoing[f"{one.path}:compensate"] = (opened, at)
    start_more(run, opened)


def _blocks(run: Run, detail: ev.Ending) -> tuple[Block | None, Block | None]:
    """What comes after the compensations: `on_failure`, `finally`."""
    failed = detail.state in (RunState.FAILED, RunState.TIMED_OUT)
    return run.plan.on_failure if failed else None, run.plan.finally_
