"""Steps with steps inside: what they go into when they begin, and what follows when that has ended.

Each decision (which case, which items, once more or not) is an event before anything acts on it, so a run that is
resumed goes on with what was decided.
"""

from collections.abc import Callable, Mapping
from typing import Final, assert_never

import msgspec

from knhk.actions.registry import Enter, Result, RetryLater, Round, Succeeded
from knhk.domain import event as ev
from knhk.domain import payload
from knhk.domain.errors import InvalidInput
from knhk.domain.event import Event, Failure
from knhk.domain.frame import InnerFrame, Role, StepState
from knhk.domain.plan import GIVEN, Directed, Foreach, Group, Loop, Parallel, Switch
from knhk.engine.blocks import foreach, group, loop, parallel, switch
from knhk.engine.blocks.answers import Answer, Give, Open
from knhk.engine.blocks.values import given_by
from knhk.engine.committer import Committer
from knhk.engine.executor import Attempt
from knhk.engine.live import LiveRun
from knhk.engine.recorder import Recorder
from knhk.ports.environment import Clock

BEGIN: Final[Mapping[type, Callable[..., Answer]]] = {
    Group: group.begin,
    Foreach: foreach.begin,
    Loop: loop.begin,
    Switch: switch.begin,
    Parallel: parallel.begin,
}
END: Final[Mapping[type, Callable[..., Answer]]] = {
    Group: group.end,
    Foreach: foreach.end,
    Loop: loop.end,
    Switch: switch.end,
    Parallel: parallel.end,
}


class Composites:
    """Takes steps with steps inside forward.

    `cancel_inside` ends all attempts in a frame and those inside it; `perform` begins one.
    """

    def __init__(
        self,
        committer: Committer,
        clock: Clock,
        recorder: Recorder,
        cancel_inside: Callable[[LiveRun, InnerFrame], None],
        perform: Callable[[Attempt], None],
    ) -> None:
        self._committer, self._clock, self._recorder = committer, clock, recorder
        self._cancel_inside, self._perform = cancel_inside, perform

    def begin(self, live: LiveRun, attempt: Attempt) -> None:
        """A step may run: find out what it goes into."""
        body = attempt.step.body
        try:
            answer = BEGIN[type(body)](body, live.scope_at(attempt.frame, attempt.index))
        except InvalidInput as error:
            answer = Failure("KNHK-STEP-EXPRESSION", error.message)
        self._follow(live, attempt, answer)

    def end(self, live: LiveRun, number: int) -> None:
        """A frame is done, has failed or is decided."""
        inner = live.run.inner
        frame = None if inner is None else inner.frames.get(number)
        if frame is None:
            return  # What is around it ended before.
        if frame.index < 0:
            return  # A phase at the end of the run: the next one has begun.
        attempt = self._attempt(live, frame)
        if frame.role is Role.UNWIND:
            failure = live.run.failures[attempt.position]
            self._recorder.fail(live, attempt, failure, again=True)
            return
        if frame.winner >= 0:
            self._cancel_inside(live, frame)
        if isinstance(attempt.step.body, Directed) and frame.role is Role.BODY:
            attempt.started_at_ns = self._clock.now_ns()
            attempt.round = Round(live.values[number].memo, _results(live, frame))
            self._perform(attempt)
        elif frame.winner < 0 and frame.first_failed >= 0:
            failure = live.run.failures[frame.first_position + frame.first_failed]
            where = failure.step or frame.path(frame.first_failed)
            self._recorder.fail(live, attempt, msgspec.structs.replace(failure, step=where), again=True)
        else:
            self._follow(live, attempt, self._answer(live, attempt, frame))

    def enter(self, live: LiveRun, attempt: Attempt, outcome: Enter) -> None:
        """The action of a step chose the block that it goes into next."""
        body = attempt.step.body
        if not isinstance(body, Directed) or not 0 <= outcome.block < len(body.blocks):
            failure = Failure("KNHK-ACTION-OUTCOME", f"the step has no block {outcome.block} to go into")
            self._recorder.fail(live, attempt, failure, again=False)
            return
        try:
            raw = self._recorder.encode([outcome.memo, outcome.given])
        except InvalidInput as error:
            self._recorder.fail(live, attempt, Failure("KNHK-STEP-OUTPUT", error.message), again=False)
            return
        timeout_ns, now = attempt.step.timeout_ns, self._clock.now_ns()
        deadline_ns = now + timeout_ns if timeout_ns and attempt.round is None else 0
        event = Event(
            now,
            ev.StepEntered(outcome.block, outcome.path, outcome.not_before_ns, deadline_ns),
            step=attempt.path,
            attempt=attempt.number,
            output_digest=payload.digest(raw),
        )
        self._recorder.add(live, attempt, event, output=raw)
        values = live.opened(attempt.frame, attempt.index, variables={GIVEN: outcome.given})
        values.memo = outcome.memo

    def expire(self, live: LiveRun, position: int) -> None:
        """The deadline of a step has passed: what is under way inside of it ends."""
        frame, index = live.run.at(position)
        child = (frame.children or {}).get(index)
        if child is None:
            return
        self._cancel_inside(live, child)
        attempt = self._attempt(live, child)
        seconds = attempt.step.timeout_ns / 1e9
        self._recorder.outcome(live, attempt, RetryLater("KNHK-STEP-TIMEOUT", f"no result after {seconds:g} s"))

    def _attempt(self, live: LiveRun, frame: InnerFrame) -> Attempt:
        """The attempt at the step that a frame was opened for."""
        parent, index = frame.parent, frame.index
        return Attempt(live, parent.first_position + index, parent.attempts[index] + 1, frame.opened_at_ns)

    def _answer(self, live: LiveRun, attempt: Attempt, frame: InnerFrame) -> Answer:
        values = live.values_of(frame)
        body = attempt.step.body
        try:
            match frame.role:
                case Role.BODY:
                    return END[type(body)](body, frame, values)
                case Role.CATCH:
                    return Give(given_by(frame.block, values))
            raise AssertionError("compensations and what a run does at its end give nothing")
        except InvalidInput as error:
            return Failure("KNHK-STEP-EXPRESSION", error.message)

    def _follow(self, live: LiveRun, attempt: Attempt, answer: Answer) -> None:
        match answer:
            case Open():
                self._open(live, attempt, answer)
            case Give():
                self._recorder.outcome(live, attempt, Succeeded(answer.output))
            case Failure():
                self._recorder.fail(live, attempt, answer, again=False)
            case _:
                assert_never(answer)

    def _open(self, live: LiveRun, attempt: Attempt, answer: Open) -> None:
        raw: bytes | None = None
        if answer.items is not None:
            try:
                raw = self._recorder.encode(answer.items)
            except InvalidInput as error:
                self._recorder.fail(live, attempt, Failure("KNHK-STEP-FOREACH", error.message), again=False)
                return
        timeout_ns, now = attempt.step.timeout_ns, self._clock.now_ns()
        event = Event(
            now,
            ev.StepOpened(answer.choice, answer.count, now + timeout_ns if timeout_ns else 0),
            step=attempt.path,
            attempt=attempt.number,
            output_digest=payload.digest(raw) if raw else b"",
        )
        self._committer.add(live, event, output=raw)
        live.opened(attempt.frame, attempt.index, items=answer.items)


def _results(live: LiveRun, frame: InnerFrame) -> tuple[Result, ...]:
    """What became of each step of a frame."""
    run, outputs = live.run, live.values[frame.number].outputs.maps[0]
    results = []
    for index, state in enumerate(frame.steps):
        if state is StepState.COMPLETED:
            results.append(Result(outputs.get(frame.step(index).name), completed=True))
        elif state is StepState.FAILED:
            failure = run.failures[frame.first_position + index]
            results.append(Result(failure=msgspec.structs.replace(failure, step=failure.step or frame.path(index))))
        else:
            results.append(Result())
    return tuple(results)
