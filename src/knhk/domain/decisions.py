"""What to do next for a run: `decide` and the commands that it returns."""

from heapq import heappop

import msgspec

from knhk.domain.event import Failure
from knhk.domain.frame import Frame, StepState
from knhk.domain.lease import is_leased
from knhk.domain.run_state import Run, RunState
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


class FailLost(msgspec.Struct, frozen=True):
    """An `at_most_once` step was started and its outcome is unknown: it must not run again."""

    position: int
    attempt: int


class Finish(msgspec.Struct, frozen=True):
    """Nothing is left to do: the run completed, or failed with what its first failed step says."""

    failure: Failure | None


class Expire(msgspec.Struct, frozen=True):
    """The run's deadline has passed."""


Command = RunStep | SkipStep | FireTimer | Deliver | FailLost | Finish | Expire


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
            if not commands and run.completed + run.others == len(run.steps):
                return [Finish(None)]
        elif not run.in_flight:
            # Attempts that were under way when a step failed are let finish: what they did must be known to a retry.
            name = run.path(run.first_failed)
            return [Finish(msgspec.structs.replace(run.failures[run.first_failed], step=name))]
        return commands
    if run.state is RunState.PAUSED and run.deadline_ns and now_ns >= run.deadline_ns:
        return [Expire()]
    return []


def _take_due(run: Run, now_ns: int, commands: list[Command]) -> None:
    while run.timers and run.timers[0][0] <= now_ns:
        at_ns, position = heappop(run.timers)
        if run.timer_at_ns.get(position) != at_ns:
            continue  # The step moved on after this timer was set.
        del run.timer_at_ns[position]
        if run.waits is not None and position in run.waits.deliveries:
            continue  # What it waited for came in time, whenever that is looked at.
        frame, index = run.at(position)
        if frame.steps[index] is StepState.WAITING:
            commands.append(FireTimer(position))
        else:
            run.make_ready(frame, index)


def _take_deliveries(waits: Waits, commands: list[Command]) -> None:
    commands.extend([Deliver(position) for position in waits.due])
    waits.due.clear()


def _take_skips(run: Run, limit: int, commands: list[Command]) -> None:
    room = max(0, limit - len(commands))
    skips, run.skips = run.skips[:room], run.skips[room:]
    for position in skips:
        frame, index = run.at(position)
        if frame.steps[index] is StepState.PENDING:  # After a crash, what was journaled as skipped is still in here.
            commands.append(SkipStep(position))


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
