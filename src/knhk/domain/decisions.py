"""What to do next for a run: `decide` and the commands that it returns."""

from heapq import heappop

import msgspec

from knhk.domain.event import Failure
from knhk.domain.frame import Frame, StepState, is_halted
from knhk.domain.lease import is_leased
from knhk.domain.run_state import Inner, Run, RunState
from knhk.domain.waits import Waits


class RunStep(msgspec.Struct, frozen=True):
    """Perform an attempt. `deadline_ns` is the one that was journaled before a crash, 0 if there is none."""

    position: int
    attempt: int
    deadline_ns: int = 0


class SkipStep(msgspec.Struct, frozen=True):
    """All that a step depends on has ended, and not so that it may run."""

    position: int


class FireTimer(msgspec.Struct, frozen=True):
    """A step's timer is due: the step completes."""

    position: int


class Deliver(msgspec.Struct, frozen=True):
    """What a step waited for has come."""

    position: int


class ExpireStep(msgspec.Struct, frozen=True):
    """The deadline of a step with steps inside has passed."""

    position: int


class EndFrame(msgspec.Struct, frozen=True):
    """A frame is done, has failed or is decided: what it was opened for goes on."""

    number: int


class FailLost(msgspec.Struct, frozen=True):
    """An `at_most_once` step was started and its outcome is unknown: it must not run again."""

    position: int
    attempt: int


class Finish(msgspec.Struct, frozen=True):
    """Nothing is left to do: the run completed, or failed with what its first failed step says."""

    failure: Failure | None


class Expire(msgspec.Struct, frozen=True):
    """The run's deadline has passed."""


Command = RunStep | SkipStep | FireTimer | Deliver | ExpireStep | EndFrame | FailLost | Finish | Expire


def decide(run: Run, now_ns: int, limit: int = 1 << 30) -> list[Command]:
    """What to do next: at most `limit` attempts, taken from the run's queues (so each is returned once)."""
    if run.state is RunState.RUNNING:
        if run.deadline_ns and now_ns >= run.deadline_ns:
            return [Expire()]
        commands: list[Command] = []
        if run.first_failed < 0:
            if run.waits is not None and run.waits.due:
                _take_deliveries(run.waits, commands)
            if run.timers:
                _take_due(run, now_ns, commands)
            if run.skips:
                _take_skips(run, limit, commands)
            if run.ready:
                _take_ready(run, run, limit, commands)
            if run.inner is not None and run.inner.frames:
                _take_inside(run, run.inner, limit, commands)
            if not commands and (run.is_done if run.ending is None else not run.children):
                return [Finish(None)]
            return commands
        if run.inner is not None:
            _take_closing(run.inner, commands)
        if not commands and not run.in_flight:
            # Attempts that were under way when a step failed are let finish: what they did must be known to a retry.
            failure = run.failures[run.first_failed]
            return [Finish(msgspec.structs.replace(failure, step=failure.step or run.path(run.first_failed)))]
        return commands
    if run.state is RunState.PAUSED and run.deadline_ns and now_ns >= run.deadline_ns:
        return [Expire()]
    return []


def _take_due(run: Run, now_ns: int, commands: list[Command]) -> None:
    while run.timers and run.timers[0][0] <= now_ns:
        at_ns, position = heappop(run.timers)
        if run.timer_at_ns.get(position) != at_ns:
            continue  # The step moved on after this timer was set.
        if run.waits is not None and position in run.waits.deliveries:
            del run.timer_at_ns[position]
            continue  # What it waited for came in time, whenever that is looked at.
        frame, index = run.at(position)
        if is_halted(frame):
            continue
        del run.timer_at_ns[position]
        if frame.steps[index] is StepState.WAITING:
            commands.append(FireTimer(position))
        elif frame.steps[index] is StepState.RUNNING:
            commands.append(ExpireStep(position))
        else:
            run.make_ready(frame, index)


def _take_deliveries(waits: Waits, commands: list[Command]) -> None:
    commands.extend([Deliver(position) for position in waits.due if position in waits.deliveries])
    waits.due.clear()


def _take_skips(run: Run, limit: int, commands: list[Command]) -> None:
    room = max(0, limit - len(commands))
    skips, run.skips = run.skips[:room], run.skips[room:]
    for position in skips:
        if not run.is_open(position):
            continue
        frame, index = run.at(position)
        if frame.steps[index] is StepState.PENDING:  # After a crash, what was journaled as skipped is still in here.
            commands.append(SkipStep(position))


def _take_inside(run: Run, inner: Inner, limit: int, commands: list[Command]) -> None:
    busy = inner.busy
    while busy and len(commands) < limit:
        frame = busy[0]
        if frame.number in inner.frames and not is_halted(frame):
            _take_ready(run, frame, limit, commands)
            if frame.ready:
                break
        busy.popleft()
        frame.listed = False
    if inner.closing:
        _take_closing(inner, commands)


def _take_closing(inner: Inner, commands: list[Command]) -> None:
    # Attempts that were under way when a step failed are let finish: what they did must be known to a retry.
    ready = [one.number for one in inner.closing.values() if one.winner >= 0 or not one.in_flight]
    for number in ready:
        del inner.closing[number]
        commands.append(EndFrame(number))


def _take_ready(run: Run, frame: Frame, limit: int, commands: list[Command]) -> None:
    first = frame.first_position
    while frame.ready and len(commands) < limit:
        index = frame.ready.popleft()
        if not frame.queued[index]:
            continue
        frame.queued[index] = 0
        state = frame.steps[index]
        if state is StepState.PENDING or state is StepState.RETRYING:
            commands.append(RunStep(first + index, frame.attempts[index] + 1))
        elif state is StepState.RUNNING:
            # Journaled as started, and not by this process: a crash came between.
            attempt = frame.attempts[index] + 1
            once = frame.step(index).semantics == "at_most_once"
            if once and not is_leased(run.leases, frame.path(index), attempt):
                commands.append(FailLost(first + index, attempt))
            else:
                commands.append(RunStep(first + index, attempt, run.started_deadlines.get(first + index, 0)))
            continue
        else:
            continue
        frame.steps[index] = StepState.RUNNING
