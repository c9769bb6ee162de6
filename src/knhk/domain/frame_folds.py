"""How frames are opened: a step goes into its steps inside, or into what is done about its failure."""

from knhk.domain import event as ev
from knhk.domain.event import Event
from knhk.domain.frame import InnerFrame, Role, StepState
from knhk.domain.plan import Block, Body, Directed, Foreach, Parallel, Switch
from knhk.domain.run_state import Run
from knhk.domain.step_folds import note_done, start_more


def opened(run: Run, event: Event, detail: ev.StepOpened) -> None:
    """A step went into its steps inside, or, if it is there already, into one more time of what is repeated."""
    frame, index = run.locate(event.step)
    if frame.children and (child := frame.children.get(index)) is not None:
        child.grow(detail.count)
        assert run.inner is not None
        run.inner.closing.pop(child.number, None)
        start_more(run, child)
        return
    position = frame.first_position + index
    frame.steps[index] = StepState.RUNNING
    frame.queued[index] = 0
    run.timer_at_ns.pop(position, None)
    if detail.deadline_ns:
        run.set_timer(position, detail.deadline_ns, event.at_ns)
    body = frame.step(index).body
    assert body is not None
    block = _block(body, detail.choice)
    child = run.open(block, frame, index, Role.BODY, detail.count if block.repeats else len(block.steps))
    child.opened_at_ns = event.at_ns
    set_bounds(child, body)
    _start(run, child)


def set_bounds(frame: InnerFrame, body: Body) -> None:
    """How many steps of a frame may run at a time, and how many may fail, as its step says."""
    match body:
        case Foreach(concurrency=concurrency, max_failures=max_failures):
            frame.concurrency, frame.tolerance = concurrency, max_failures
        case Parallel(compete=True):
            frame.tolerance = len(frame.block.steps) - 1


def entered(run: Run, event: Event, detail: ev.StepEntered) -> None:
    """The action of a step chose the block that it goes into next; what it went into before is over."""
    frame, index = run.locate(event.step)
    if frame.children and (before := frame.children.get(index)) is not None:
        run.drop(before)
    frame.steps[index] = StepState.RUNNING
    frame.queued[index] = 0
    if detail.deadline_ns:
        run.set_timer(frame.first_position + index, detail.deadline_ns, event.at_ns)
    body = frame.step(index).body
    assert isinstance(body, Directed)
    block = body.blocks[detail.block]
    child = run.open(block, frame, index, Role.BODY, len(block.steps), under=detail.path)
    child.opened_at_ns = event.at_ns
    if body.compete:
        child.tolerance = len(block.steps) - 1
    for first in block.first:
        if detail.not_before_ns:
            run.set_timer(child.first_position + first, detail.not_before_ns, event.at_ns)
        else:
            run.make_ready(child, first)


def caught(run: Run, event: Event, detail: ev.StepCaught) -> None:
    """A step failed, and what its `catch` says begins."""
    frame, index = run.locate(event.step)
    position = frame.first_position + index
    if frame.children and (child := frame.children.get(index)) is not None:
        note_done(frame, child.take_done())
        run.drop(child)
    frame.steps[index] = StepState.RUNNING
    frame.queued[index] = 0
    run.timer_at_ns.pop(position, None)
    run.started_deadlines.pop(position, None)
    run.failures[position] = detail.failure
    catch = frame.step(index).catch
    assert catch is not None
    child = run.open(catch.block, frame, index, Role.CATCH, len(catch.block.steps))
    child.opened_at_ns = event.at_ns
    _start(run, child)


def _block(body: Body, choice: int) -> Block:
    assert not isinstance(body, Directed)
    return body.cases[choice].block if isinstance(body, Switch) else body.block


def _start(run: Run, frame: InnerFrame) -> None:
    if not frame.block.repeats:
        for index in frame.block.first:
            run.make_ready(frame, index)
    elif frame.steps:
        start_more(run, frame)
    else:
        assert run.inner is not None
        run.inner.closing[frame.number] = frame
