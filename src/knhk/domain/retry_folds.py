"""An operator lets an ended run go on: what failed is reset; inside of steps, what had completed there stays.

A step with steps inside that fails, or is ended with its run, leaves its frame behind (`Run.put_away`). A retry that
names it as resumed opens that frame again: its completed steps, or items, are not done a second time. Nested deeper,
what has not completed is done again as a whole.
"""

from collections.abc import Sequence
from typing import Final

from knhk.domain import event as ev
from knhk.domain.event import Event
from knhk.domain.frame import Frame, InnerFrame, StepState
from knhk.domain.frame_folds import set_bounds
from knhk.domain.plan import Step, blocks_in
from knhk.domain.run_state import Run, RunState
from knhk.domain.step_folds import start_more

_COMPLETED: Final = frozenset({"completed"})


def retried(run: Run, event: Event, detail: ev.Retried) -> None:
    """An ended run goes on."""
    run.note_decision("retry", detail.idempotency_key)
    run.state = RunState.RUNNING
    run.deadline_ns = detail.deadline_ns
    run.started_at_ns = run.started_at_ns or event.at_ns
    run.ended_at_ns = 0
    run.failure = run.ending = run.finally_failed = None
    run.settled = False
    run.first_failed = -1
    run.timers.clear()
    run.timer_at_ns.clear()
    run.since_ns.clear()
    run.started_deadlines.clear()
    if run.waits is not None:
        run.waits.stop()
    for name in detail.steps:
        _reset(run, run.plan.index_of[name], detail)
    kept, run.kept = run.kept or {}, None
    for name in detail.resumed:
        _resume(run, event, kept[run.plan.index_of[name]])
    run.ready.clear()
    run.skips.clear()
    run.queued = bytearray(len(run.steps))
    _let_run(run, run)


def _reset(run: Run, index: int, detail: ev.Retried) -> None:
    run.steps[index] = StepState.PENDING
    run.base_attempts[index] = run.attempts[index]
    run.failures.pop(index, None)
    if run.reused is not None:
        run.reused.pop(index, None)
    run.output_seqs[index], run.output_digests[index] = -1, b""
    if detail.from_step and run.children is not None and index in run.children:
        run.drop(run.children[index])


def _resume(run: Run, event: Event, frame: InnerFrame) -> None:
    """Open a frame again that was kept. Its time begins anew."""
    inner, step = run.inner, run.block.steps[frame.index]
    assert inner is not None
    assert step.body is not None
    inner.frames[frame.number] = inner.prefixes[frame.prefix] = frame
    run.children = {**(run.children or {}), frame.index: frame}
    run.steps[frame.index] = StepState.RUNNING
    frame.opened_at_ns = event.at_ns
    frame.first_failed, frame.first_failure = -1, None
    frame.ready.clear()
    frame.queued = bytearray(len(frame.steps))
    frame.listed = False
    set_bounds(frame, step.body)
    for at, state in enumerate(frame.steps):
        if state is StepState.PENDING:
            run.base_attempts[frame.first_position + at] = frame.attempts[at]
    if step.timeout_ns:
        run.set_timer(frame.index, event.at_ns + step.timeout_ns, event.at_ns)
    if frame.block.repeats:
        frame.completed, frame.others = frame.steps.count(StepState.COMPLETED), 0
        frame.again = [at for at in range(frame.started) if frame.steps[at] is StepState.PENDING][::-1]
        start_more(run, frame)
    else:
        _let_run(run, frame)


def _let_run(run: Run, frame: Frame) -> None:
    """Count what follows from the states of the steps, after some were reset, and let those run that may."""
    steps, states = frame.block.steps, frame.steps
    frame.completed = states.count(StepState.COMPLETED)
    over = [_way_of(step, state) for step, state in zip(steps, states, strict=True)]
    frame.others = sum(1 for way in over if way and way != "completed")
    frame.remaining = [sum(1 for other in step.depends_on if not over[other]) for step in steps]
    frame.doomed = {
        step.index
        for step in steps
        for other in step.depends_on
        if over[other] and not _runs_after(step, other, over[other])
    }
    for index, state in enumerate(states):
        if state is StepState.PENDING and not frame.remaining[index]:
            if index in frame.doomed:
                run.skips.append(frame.first_position + index)
            else:
                run.make_ready(frame, index)


def _way_of(step: Step, state: StepState) -> str:
    """How a step has ended, as the steps that depend on it see it; empty if it has not."""
    match state:
        case StepState.COMPLETED:
            return "completed"
        case StepState.SKIPPED:
            return "skipped"
        case StepState.FAILED if step.failure_is_handled:
            return "either" if step.continue_on_error else "failed"
    return ""


def _runs_after(step: Step, other: int, way: str) -> bool:
    accepted = step.accepts.get(other, _COMPLETED)
    return bool(accepted & {"completed", "failed"}) if way == "either" else way in accepted


def steps_to_resume(run: Run, reset: Sequence[str]) -> tuple[str, ...]:
    """Of the steps that a retry resets, those that go on with what had completed inside of them.

    Not what comes after something that was compensated, whose input may be another now; what can be compensated itself;
    nor what failed although all inside of it had completed.
    """
    kept = run.kept
    if not kept:
        return ()
    anew = [step.index for step in run.plan.steps if run.steps[step.index] is StepState.COMPENSATED]
    for index in anew:
        anew += [one for one in run.plan.steps[index].dependents if one not in anew]
    return tuple(
        name
        for name in reset
        if (index := run.plan.index_of[name]) in kept
        and index not in anew
        and StepState.COMPLETED in kept[index].steps
        and StepState.PENDING in kept[index].steps
        and not _can_be_undone(run.plan.steps[index])
    )


def _can_be_undone(step: Step) -> bool:
    return step.compensate is not None or any(_can_be_undone(one) for block in blocks_in(step) for one in block.steps)
