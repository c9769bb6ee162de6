"""Performs attempts: evaluate the parameters, check them, run the action, make a value of whatever comes of it.

Short pure actions run right here in the loop; coroutines get a task, blocking functions a thread. An attempt ends once,
with an outcome, by returning, raising, passing its deadline or being cancelled; what it does later is not looked at.
All exceptions end here, or in actions/transport.py.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Final, Protocol

from knhk.actions.registry import (
    INVOCATION,
    Action,
    Cancelled,
    Failed,
    Invocation,
    Outcome,
    Registry,
    RetryLater,
    Round,
)
from knhk.actions.transport import CANCELLED_CODE, normalised, run_blocking, short
from knhk.domain import trace_context
from knhk.domain.compile import check_schema
from knhk.domain.errors import InvalidInput, NotFound
from knhk.domain.frame import FIRST_INSIDE, Frame
from knhk.domain.identifier import to_text
from knhk.domain.plan import GIVEN, Step
from knhk.engine.live import LiveRun
from knhk.engine.step_slots import StepSlots
from knhk.ports.environment import Clock

THREAD_NAME: Final = "knhk-action"
_NO_DEPENDENCIES: Final[dict[str, Any]] = {}


class Attempt:
    """One attempt at one step while it is under way. `params` is what the action was given.

    `position` is the step's in the run, `path` what receipts call it. `round` is what became of the block that the
    step's action chose before, if it is called again. `cache_key` is where others may find what it
    gives, empty if none may.
    """

    __slots__ = (
        "cache_key",
        "deadline_ns",
        "ended",
        "frame",
        "index",
        "live",
        "number",
        "params",
        "path",
        "position",
        "queued_ns",
        "round",
        "started_at_ns",
        "step",
        "task",
    )
    frame: Frame
    step: Step

    def __init__(self, live: LiveRun, position: int, number: int, started_at_ns: int) -> None:
        self.live, self.position, self.number = live, position, number
        if position < FIRST_INSIDE:
            self.frame, self.index = live.run, position
            self.step = step = live.run.block.steps[position]
            self.path = step.name
        else:
            self.frame, self.index = live.run.at(position)
            self.step, self.path = self.frame.step(self.index), self.frame.path(self.index)
        self.started_at_ns = started_at_ns
        self.queued_ns = 0
        self.deadline_ns = 0
        self.params: Any = None
        self.round: Round | None = None
        self.task: asyncio.Task[None] | None = None
        self.ended = False
        self.cache_key = b""


class Remote(Protocol):
    """Where attempts go that remote workers perform."""

    def offer(self, attempt: Attempt, invocation: Invocation) -> None:
        """Let a worker take the attempt; what comes of it is reported as for any other."""
        ...

    def withdraw(self, attempt: Attempt) -> None:
        """Nobody waits for the attempt any more: a worker that has it is refused."""
        ...


class Executor:
    """Runs attempts, at most `max_concurrent` of those with a task at a time; others wait for their turn.

    `sampling_rate` is the share of runs whose spans are sent, None if none are.
    """

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        *,
        max_concurrent: int,
        threads: int,
        sampling_rate: float | None = None,
        remote: Remote,
        ended: Callable[[Attempt, Outcome], None],
    ) -> None:
        self._remote = remote
        self._registry, self._clock, self._ended = registry, clock, ended
        self._max_concurrent, self._sampling_rate = max_concurrent, sampling_rate
        self._running: set[asyncio.Task[None]] = set()
        self._slots: StepSlots[tuple[Attempt, Action, Invocation]] = StepSlots()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=THREAD_NAME)

    @property
    def running(self) -> int:
        """How many attempts have a task."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many attempts wait for a place."""
        return len(self._slots)

    def is_waiting(self, attempt: Attempt) -> bool:
        """Whether an attempt waits for a place."""
        return bool(self._slots) and any(one is attempt for one, _, _ in self._slots)

    def begin(self, attempt: Attempt) -> Outcome | None:
        """Begin an attempt. An outcome means that it has ended already; otherwise `ended` is called when it does."""
        prepared = self._prepare(attempt)
        if not isinstance(prepared, Invocation):
            return prepared
        if attempt.step.traits.queue:
            self._remote.offer(attempt, prepared)
            return None
        try:
            action = self._registry.get(attempt.step.action)
        except NotFound as error:
            return RetryLater("KNHK-ACTION-UNKNOWN", error.message)
        if action.mode == "inline":
            return run_blocking(action, prepared)
        if len(self._running) >= self._max_concurrent:
            run = attempt.live.run
            self._slots.add(run.plan.department, run.workflow_id, (attempt, action, prepared))
        else:
            self._launch(attempt, action, prepared)
        return None

    def end(self, attempt: Attempt, outcome: Outcome) -> None:
        """Give an attempt its outcome from outside (deadline, cancel). A no-op if it has ended."""
        if attempt.ended:
            return
        attempt.ended = True
        if attempt.task is not None:
            attempt.task.cancel()
        elif attempt.step.traits.queue:
            self._remote.withdraw(attempt)
        if not isinstance(outcome, Cancelled):
            self._ended(attempt, outcome)

    async def close(self) -> None:
        """Stop everything that is under way. Outcomes are not reported any more."""
        self._slots.clear()
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._registry.aclose()

    def _prepare(self, attempt: Attempt) -> Invocation | Outcome:
        live, step = attempt.live, attempt.step
        scope = live.scope if attempt.position < FIRST_INSIDE else live.scope_at(attempt.frame, attempt.index)
        try:
            params = step.params.evaluate(scope)
        except InvalidInput as error:
            return Failed("KNHK-STEP-PARAMS", short(error.message))
        schema = step.traits.params_schema
        if schema is not None and step.params.dynamic:
            problems = check_schema(schema, params, "params")
            if problems:
                return Failed("KNHK-STEP-PARAMS", short("; ".join(str(one) for one in problems)))
        attempt.params = params
        run = live.run
        outputs = scope.outputs
        workflow_id = to_text(run.workflow_id)
        return Invocation(
            workflow_id=workflow_id,
            workflow_name=run.plan.name,
            step=attempt.path,
            attempt=attempt.number,
            idempotency_key=f"{workflow_id}/{run.key_of(attempt.path) if run.undone else attempt.path}",
            params=params,
            dependencies={name: outputs.get(name) for name in step.given} if step.given else _NO_DEPENDENCIES,
            scope=scope,
            now_ns=attempt.started_at_ns,
            traceparent=self._traceparent(attempt),
            definition=step.definition,
            given=scope.extra.get(GIVEN) if step.definition is not None else None,
            round=attempt.round,
        )

    def _traceparent(self, attempt: Attempt) -> str:
        """What an action passes on: its own span, or the submitter's if spans are not sent or it calls nobody."""
        run, step = attempt.live.run, attempt.step
        rate = self._sampling_rate
        if rate is None or step.traits.pure:
            return run.submitted.traceparent if run.submitted is not None else ""
        covenant = run.plan.covenant
        return trace_context.attempt_context(run.workflow_id, attempt.path, attempt.number, rate, covenant).header()

    def _launch(self, attempt: Attempt, action: Action, invocation: Invocation) -> None:
        task = asyncio.create_task(self._perform(attempt, action, invocation), name=invocation.idempotency_key)
        attempt.task = task
        self._running.add(task)
        department = attempt.live.run.plan.department
        self._slots.running[department] += 1
        task.add_done_callback(partial(self._leave, department))

    def _leave(self, department: str, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._slots.left(department)
        while self._slots and len(self._running) < self._max_concurrent:
            attempt, action, invocation = self._slots.take()
            if not attempt.ended:
                now = self._clock.now_ns()
                attempt.queued_ns, attempt.started_at_ns = now - attempt.started_at_ns, now
                self._launch(attempt, action, invocation)

    async def _perform(self, attempt: Attempt, action: Action, invocation: Invocation) -> None:
        outcome: Outcome
        try:
            INVOCATION.set(invocation)  # A task has a context of its own.
            if action.mode == "thread":
                loop = asyncio.get_running_loop()
                run = partial(copy_context().run, run_blocking, action, invocation)
                outcome = await loop.run_in_executor(self._threads, run)
            else:
                outcome = await action.run(invocation)  # type: ignore[misc]  # mode says that it is awaitable
        except asyncio.CancelledError:
            if attempt.ended:
                return  # Its deadline passed or its run ended: nobody waits for it.
            if (current := asyncio.current_task()) is not None and current.cancelling():
                raise  # The executor is closing: the attempt is taken up again after the restart.
            outcome = RetryLater(CANCELLED_CODE, "the action cancelled itself")
        except Exception as error:
            outcome = normalised(error)
        if not attempt.ended:
            attempt.ended = True
            self._ended(attempt, outcome)
