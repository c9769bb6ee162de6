"""Child workflows: begun with their parent's step, ended with it, and their end told to it, each exactly once.

A child's submission and its parent's `step.waiting`, which names it, are one commit, so there is never one without the
other. The end of a child, and of a parent with children, leaves something to do. Until that is done and said so by
`workflow.settled`, a restart loads the ended run and does it: tells the parent, cancels the children.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from knhk.actions.registry import Failed, Outcome, RetryLater, StartWorkflow, WaitFor
from knhk.domain import event as ev
from knhk.domain import payload
from knhk.domain.errors import Conflict, KnhkError, NotFound, Overloaded
from knhk.domain.identifier import to_text
from knhk.domain.inputs import check_inputs
from knhk.domain.plan import Plan
from knhk.domain.run import Run, RunState
from knhk.engine.arrivals import Arrivals
from knhk.engine.definitions import Definitions
from knhk.engine.executor import Attempt
from knhk.engine.inbound import Inbound
from knhk.engine.live import LiveRun
from knhk.engine.scheduler import Scheduler
from knhk.ports.environment import Clock

DEEPEST: Final = 16
"""So many workflows may stand above one, so that one that starts itself comes to an end."""
_RETRY_S: Final = 0.5
_FULL_S: Final = 1.0
_ACTOR: Final = "engine"

Create = Callable[[Plan, dict[str, Any], int, int, Attempt], int]
"""Makes a child from plan, inputs, version and depth for an attempt; the child's id. Raises Overloaded."""


class Children:
    """Keeps parents and children of one partition together."""

    def __init__(
        self,
        *,
        definitions: Definitions,
        scheduler: Scheduler,
        arrivals: Arrivals,
        inbound: Inbound,
        clock: Clock,
        create: Create,
        results: Callable[[int], Awaitable[tuple[Run, dict[str, Any]]]],
        cancel: Callable[..., Awaitable[None]],
    ) -> None:
        self._definitions, self._scheduler, self._arrivals = definitions, scheduler, arrivals
        self._inbound, self._clock = inbound, clock
        self._create, self._results, self._cancel = create, results, cancel
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, attempt: Attempt, wanted: StartWorkflow) -> None:
        """Start a child for an attempt, which has ended when the child is there and its step waits for it."""
        self._spawn(self._start(attempt, wanted))

    def ended(self, live: LiveRun) -> None:
        """A run's end is durable: if something follows from it, see to that."""
        if live.run.unsettled:
            self._spawn(self._settle(live.run.workflow_id))

    def left(self, live: LiveRun) -> None:
        """A run goes on without some of its children: they end too."""
        if live.run.waits is not None:
            for child in live.run.waits.orphans:
                self._spawn(self._end(child, live.run.workflow_id))

    async def stop(self) -> None:
        """Leave the rest to the next start."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="children")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, attempt: Attempt, wanted: StartWorkflow) -> None:
        outcome: Outcome | None = None
        while outcome is None:
            try:
                version, plan = await self._definitions.resolve(wanted.name, wanted.version)
                if attempt.ended or attempt.live.attempts.get(attempt.position) is not attempt:
                    return  # The run ended meanwhile, or the attempt's time was over.
                outcome = self._begun(attempt, plan, wanted, version.number)
            except Overloaded:
                await self._clock.sleep(_FULL_S)
            except KnhkError as error:
                kind = RetryLater if error.retryable else Failed
                outcome = kind("KNHK-CHILD-START", f"{wanted.name}: {error.message}")
        attempt.ended = True
        self._scheduler.attempt_ended(attempt, outcome)

    def _begun(self, attempt: Attempt, plan: Plan, wanted: StartWorkflow, version: int) -> Outcome:
        submitted = attempt.live.run.submitted
        depth = 1 + (submitted.child_of.depth if submitted is not None else 0)
        if depth > DEEPEST:
            return Failed("KNHK-CHILD-START", f"{DEEPEST} workflows stand above {wanted.name!r} already")
        inputs = check_inputs(plan, wanted.inputs)
        child = self._create(plan, inputs, version, depth, attempt)
        return WaitFor("child", child=child)

    async def _settle(self, workflow_id: int) -> None:
        """Do what follows from the end of a run, and say so. Again, if the store fails in between."""
        while True:
            try:
                run, results = await self._results(workflow_id)
                if not run.unsettled:
                    return
                if run.submitted is not None and (parent := run.submitted.child_of.workflow_id):
                    await self._tell(parent, run, results)
                for child in tuple(run.waits.children) if run.waits is not None else ():
                    await self._cancel_child(child, workflow_id)
                async with self._arrivals.hold(workflow_id) as live:
                    if live.run.unsettled:
                        live.marked_live = True  # As it was left in the store, for a restart to find.
                        await self._inbound.record(live, ev.Settled(), _ACTOR)
                return
            except NotFound:
                return
            except KnhkError as error:
                if not error.retryable:
                    return
            await self._clock.sleep(_RETRY_S)

    async def _tell(self, parent: int, run: Run, results: dict[str, Any]) -> None:
        """Tell a parent how its child ended, if it does not know."""
        with suppress(NotFound):
            async with self._arrivals.hold(parent) as live:
                waits = live.run.waits
                if live.run.ended or waits is None or run.workflow_id not in waits.children:
                    return
                raw = payload.encode(results if run.state is RunState.COMPLETED else None)
                live.signals[live.run.seq] = raw
                detail = ev.ChildEnded(run.workflow_id, str(run.state), run.failure)
                batch = self._inbound.add(live, detail, _ACTOR, data=raw)
            await batch.committed()  # Not before the next child can tell the parent: many ends are one commit.

    async def _end(self, child: int, parent: int) -> None:
        while True:
            try:
                await self._cancel_child(child, parent)
                return
            except KnhkError as error:
                if not error.retryable:
                    return
            await self._clock.sleep(_RETRY_S)

    async def _cancel_child(self, child: int, parent: int) -> None:
        with suppress(Conflict, NotFound):  # It has ended by itself.
            await self._cancel(
                child, actor=_ACTOR, reason=f"its parent {to_text(parent)} does not wait for it any more"
            )
