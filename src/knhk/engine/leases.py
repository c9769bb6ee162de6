"""The leases of one partition's attempts on remote workers: given, kept, ended by a result, or over.

Every lease is journaled as `step.started` before the worker hears of it. Its token is a number that grows from lease to
lease, over restarts too, so that the last one alone is good; its last bits name the partition. A lease that runs out is
given out again, the same attempt with a new token; after a crash of the server, or when the partition moves, workers
have one more lease's time to answer for what they hold.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from knhk.actions.registry import Cancelled, Failed, Invocation, Outcome, RetryLater, Succeeded, WaitUntil
from knhk.actions.transport import assignment_of
from knhk.actions.workers import Task, TaskQueues
from knhk.domain.errors import LeaseLost
from knhk.domain.identifier import PARTITION_BITS, parse
from knhk.domain.run import Run, StepState
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


def partition_of_token(token: int) -> int:
    """The partition of the attempt that a lease is on."""
    return token & ((1 << PARTITION_BITS) - 1)


class WorkerLimits(msgspec.Struct, frozen=True):
    """`lease_ns` is how long a worker may be silent that asks for no other time, `max_deliveries` how often one attempt
    is given out before it counts as failed."""

    lease_ns: int = 60_000_000_000
    max_lease_ns: int = 3_600_000_000_000
    max_deliveries: int = 5


class Leases:
    """The attempts of one partition that remote workers perform. Those that nobody holds are in the queues."""

    def __init__(
        self,
        partition: int,
        queues: TaskQueues,
        clock: Clock,
        limits: WorkerLimits,
        *,
        leased: Callable[[Attempt, str, int], Batch],
        ended: Callable[[Attempt, Outcome], None],
        fold: Callable[[int], Awaitable[Run]],
    ) -> None:
        self.partition, self.limits = partition, limits
        self._queues, self._clock = queues, clock
        self._leased, self._ended, self._fold = leased, ended, fold
        self._held: dict[int, Task] = {}
        self._task_of: dict[Attempt, Task] = {}
        self._timers = Deadlines(clock, self._expire)
        self._last_token = 0

    def offer(self, attempt: Attempt, invocation: Invocation) -> None:
        """Let a worker take an attempt. One that was given out before a crash is its worker's for one more lease."""
        step = attempt.step
        task = Task(step.traits.queue, assignment_of(step.action, invocation), attempt, self)
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

    async def give(self, tasks: Sequence[Task], worker: str, lease_ns: int) -> list[Task]:
        """Journal the leases, wait until they are durable, and return those that are still good then."""
        batches: dict[int, Batch] = {}
        tokens: list[int] = []
        for task in tasks:
            task.token = self._next_token()
            task.worker, task.lease_ns = worker, min(lease_ns, self.limits.max_lease_ns)
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

    def _next_token(self) -> int:
        """Unix time, so that it grows over restarts: the clock never goes back behind the journal."""
        at_least = max(self._last_token, self._clock.now_ns()) >> PARTITION_BITS
        self._last_token = (at_least + 1) << PARTITION_BITS | self.partition
        return self._last_token

    def holds(self, token: int) -> bool:
        """Whether a lease is good."""
        return token in self._held

    def extend(self, token: int) -> None:
        """Begin a lease that is good anew."""
        self._extend(self._held[token])

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

    def release(self, worker: str, tokens: Iterable[int] | None = None) -> None:
        """Give back attempts that a worker will not finish, None for all of its."""
        if tokens is None:
            tokens = [token for token, task in self._held.items() if task.worker == worker]
        for token in tokens:
            task = self._held.get(token)
            if task is not None and task.worker == worker:
                self._give_back(task, "was given back by")

    @property
    def held(self) -> Iterable[Task]:
        """What workers have now."""
        return self._held.values()

    def stop(self) -> None:
        """Let no lease run out any more, and nobody take what is in the queues."""
        self._timers.close()
        for task in self._task_of.values():
            task.gone = True
        self._task_of.clear()
        self._held.clear()

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
        self._timers.set((task.token, 0), task.until_ns)

    def _let_go(self, task: Task) -> None:
        if self._held.pop(task.token, None) is not None:
            self._timers.clear((task.token, 0))

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
