"""Remote workers: gives attempts out on leases, takes their results, and refuses those of a lease that is over.

Every lease is journaled as `step.started` before the worker hears of it. Its token is a number that grows from lease to
lease, over restarts too, so that the last one alone is good. A lease that runs out is given out again, the same attempt
with a new token; after a crash of the server, workers have one more lease's time to answer for what they hold.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from knhk.actions.registry import Cancelled, Failed, Invocation, Outcome, RetryLater, Succeeded, WaitUntil
from knhk.actions.transport import assignment_of
from knhk.actions.workers import Task, TaskQueues, Wanted
from knhk.domain.errors import LeaseLost, ShuttingDown
from knhk.domain.identifier import parse
from knhk.domain.run import Run, StepState
from knhk.domain.times import rfc3339
from knhk.engine.committer import Batch
from knhk.engine.deadlines import Deadlines, Key
from knhk.engine.executor import Attempt
from knhk.ports.environment import Clock

LOST_CODE: Final = "KNHK-WORKER-LOST"
UNKNOWN_CODE: Final = "KNHK-STEP-OUTCOME-UNKNOWN"
_STATES: Final = {
    True: (StepState.COMPLETED, StepState.WAITING),
    False: (StepState.FAILED, StepState.RETRYING),
}
"""In which a step is after a result that was good, or not."""
_WORKERS_KEPT: Final = 1_000
_SEEN_FOR_NS: Final = 600_000_000_000


class WorkerLimits(msgspec.Struct, frozen=True):
    """`lease_ns` is how long a worker may be silent that asks for no other time, `max_deliveries` how often one attempt
    is given out before it counts as failed."""

    lease_ns: int = 60_000_000_000
    max_lease_ns: int = 3_600_000_000_000
    max_deliveries: int = 5


class Seen(msgspec.Struct):
    """A worker that asked for work."""

    queues: tuple[str, ...]
    at_ns: int


class Workers:
    """The attempts of one partition that remote workers perform."""

    def __init__(
        self,
        clock: Clock,
        limits: WorkerLimits,
        *,
        leased: Callable[[Attempt, str, int], Batch],
        ended: Callable[[Attempt, Outcome], None],
        fold: Callable[[int], Awaitable[Run]],
    ) -> None:
        self.limits = limits
        self._clock, self._leased, self._ended, self._fold = clock, leased, ended, fold
        self._queues = TaskQueues()
        self._held: dict[int, Task] = {}
        self._task_of: dict[Attempt, Task] = {}
        self._leases = Deadlines(clock, self._expire)
        self._seen: dict[str, Seen] = {}
        self._last_token = 0
        self._closed = False

    def offer(self, attempt: Attempt, invocation: Invocation) -> None:
        """Let a worker take an attempt. One that was given out before a crash is its worker's for one more lease."""
        step = attempt.step
        task = Task(step.traits.queue, assignment_of(step.action, invocation), attempt)
        self._task_of[attempt] = task
        lease = attempt.live.run.leases.get(attempt.path)
        if lease is not None and lease.attempt == attempt.number:
            task.token, task.worker, task.lease_ns = lease.token, lease.worker, self.limits.lease_ns
            self._hold(task)
        else:
            self._queues.put(task)

    def withdraw(self, attempt: Attempt) -> None:
        """Nobody waits for the attempt any more."""
        task = self._task_of.pop(attempt, None)
        if task is not None:
            task.gone = True
            self._let_go(task)

    async def poll(
        self,
        worker: str,
        queues: Sequence[str],
        actions: Sequence[str],
        *,
        limit: int,
        wait_s: float,
        lease_ns: int | None = None,
    ) -> list[Task]:
        """Up to `limit` attempts for a worker, as soon as there is one; none after `wait_s` seconds without.

        Raises:
            ShuttingDown: no attempts are given out any more.
            StorageUnavailable, DiskFull: the leases cannot be written.
        """
        self._note(worker, queues)
        left, until_ns = wait_s, self._clock.now_ns() + round(wait_s * 1e9)
        while True:
            if self._closed:
                raise ShuttingDown("no attempts are given out any more")
            taken = self._queues.take(Wanted(queues, actions, None), limit)
            if taken or left <= 0:
                return await self._give(taken, worker, min(lease_ns or self.limits.lease_ns, self.limits.max_lease_ns))
            await self._woken(queues, actions, left)
            left = (until_ns - self._clock.now_ns()) / 1e9

    def heartbeat(self, worker: str, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        """Begin the leases of these tokens anew; which of them are still held, and which are over."""
        known = self._seen.get(worker)
        if known is not None:
            known.at_ns = self._clock.now_ns()
        held = [token for token in tokens if token in self._held]
        for token in held:
            self._extend(self._held[token])
        return held, [token for token in tokens if token not in self._held]

    async def report(self, workflow_id: str, step: str, token: int, outcome: Outcome) -> bool:
        """Take a worker's result; returns once that is committed. True if it had been taken before.

        Raises:
            LeaseLost: the lease is over: the attempt is another worker's, or nobody waits for it any more.
            WorkflowNotFound: there is no such run.
        """
        task = self._held.get(token)
        number = parse(workflow_id)
        if task is None or task.assignment.step != step or task.context.live.run.workflow_id != number:
            return await self._taken_before(number, step, token, outcome)
        if isinstance(outcome, Cancelled):
            outcome = RetryLater("KNHK-ACTION-CANCELLED", "the worker's action gave up")
        live = task.context.live
        self._finish(task, outcome)
        if live.batch is not None:
            await live.batch.committed()
        return False

    def release(self, worker: str, tokens: Sequence[int] | None = None) -> list[int]:
        """Give back attempts that a worker will not finish, None for all of its; the leases that are over now."""
        if tokens is None:
            tokens = [token for token, task in self._held.items() if task.worker == worker]
        for token in tokens:
            task = self._held.get(token)
            if task is not None and task.worker == worker:
                self._give_back(task, "was given back by")
        return [token for token in tokens if token not in self._held]

    def overview(self) -> dict[str, Any]:
        """What waits, who works on what, and who asked lately."""
        waiting, held = self._queues.counts(), self._held.values()
        names = sorted({*waiting, *(task.queue for task in held)})
        return {
            "queues": [
                {"queue": name, "waiting": waiting.get(name, 0), "held": sum(task.queue == name for task in held)}
                for name in names
            ],
            "workers": [
                {
                    "worker": name,
                    "queues": list(seen.queues),
                    "last_seen": rfc3339(seen.at_ns),
                    "held": sum(task.worker == name for task in held),
                }
                for name, seen in sorted(self._seen.items())
            ],
        }

    def close(self) -> None:
        """Give out nothing more, and answer those who wait."""
        self._closed = True
        self._queues.close()

    def stop(self) -> None:
        """Let no lease run out any more."""
        self.close()
        self._leases.close()

    async def _woken(self, queues: Sequence[str], actions: Sequence[str], seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wanted = Wanted(queues, actions, partial(_settle, woken))
        self._queues.wait(wanted)
        timer = self._clock.call_later(seconds, partial(_settle, woken))
        try:
            await woken
        except asyncio.CancelledError:
            self._queues.leave(wanted)
            self._queues.nudge()  # It may have been woken for a task that another one can have now.
            raise
        finally:
            timer.cancel()
            self._queues.leave(wanted)

    async def _give(self, tasks: list[Task], worker: str, lease_ns: int) -> list[Task]:
        """Journal the leases, wait until they are durable, and return those that are still good then."""
        batches: dict[int, Batch] = {}
        tokens: list[int] = []
        for task in tasks:
            # Unix time, so that it grows over restarts: the clock never goes back behind the journal.
            self._last_token = task.token = max(self._last_token + 1, self._clock.now_ns())
            task.worker, task.lease_ns = worker, lease_ns
            self._hold(task)
            tokens.append(task.token)
            batch = self._leased(task.context, worker, task.token)
            batches[id(batch)] = batch
        try:
            for batch in batches.values():
                await batch.committed()
        except BaseException:  # nobody will hear of them
            self.release(worker, tokens)
            raise
        return [task for task, token in zip(tasks, tokens, strict=True) if token in self._held]

    async def _taken_before(self, workflow_id: int, step: str, token: int, outcome: Outcome) -> bool:
        """Whether this very result was taken: a worker that did not hear the answer reports it again."""
        run = await self._fold(workflow_id)
        lease = run.leases.get(step)
        if lease is not None and lease.token == token:
            with suppress(KeyError):  # its block is over
                frame, index = run.locate(step)
                if frame.steps[index] in _STATES[isinstance(outcome, Succeeded | WaitUntil)]:
                    return True
        raise LeaseLost(f"the lease {token} on step {step!r} is over")

    def _hold(self, task: Task) -> None:
        self._held[task.token] = task
        self._extend(task)

    def _extend(self, task: Task) -> None:
        task.until_ns = self._clock.now_ns() + task.lease_ns
        self._leases.set((task.token, 0), task.until_ns)

    def _let_go(self, task: Task) -> None:
        if self._held.pop(task.token, None) is not None:
            self._leases.clear((task.token, 0))

    def _finish(self, task: Task, outcome: Outcome) -> None:
        attempt = task.context
        self._let_go(task)
        self._task_of.pop(attempt, None)
        attempt.ended = True
        self._ended(attempt, outcome)

    def _expire(self, key: Key) -> None:
        task = self._held.get(key[0])
        if task is not None:
            self._give_back(task, "was not heard of by its lease's end:")

    def _give_back(self, task: Task, how: str) -> None:
        """End a lease without a result: the attempt is given out again, unless that may not be or is in vain."""
        attempt = task.context
        if attempt.step.semantics == "at_most_once":
            message = f"an at_most_once step {how} worker {task.worker!r}; it is not known whether it took effect"
            return self._finish(task, Failed(UNKNOWN_CODE, message))
        lease = attempt.live.run.leases[attempt.path]
        if lease.deliveries >= self.limits.max_deliveries:
            message = f"given out {lease.deliveries} times, and no worker answered; the last was {task.worker!r}"
            return self._finish(task, RetryLater(LOST_CODE, message))
        self._let_go(task)
        task.token = 0
        return self._queues.put(task)

    def _note(self, worker: str, queues: Sequence[str]) -> None:
        now = self._clock.now_ns()
        self._seen[worker] = Seen(tuple(queues), now)
        if len(self._seen) > _WORKERS_KEPT:
            self._seen = {name: seen for name, seen in self._seen.items() if now - seen.at_ns < _SEEN_FOR_NS}
            while len(self._seen) > _WORKERS_KEPT:
                del self._seen[next(iter(self._seen))]


def _settle(woken: "asyncio.Future[None]") -> None:
    if not woken.done():
        woken.set_result(None)
