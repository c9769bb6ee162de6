"""Remote workers: what they may take and hold, of all partitions of this process. leases.py says what a lease is."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import msgspec

from knhk.actions.registry import Outcome
from knhk.actions.workers import Task, TaskQueues, Wanted
from knhk.domain.errors import KnhkError, PartitionMoving, ShuttingDown
from knhk.domain.identifier import parse, partition_of
from knhk.domain.times import rfc3339
from knhk.engine.leases import Leases, WorkerLimits, partition_of_token
from knhk.ports.environment import Clock

_WORKERS_KEPT: Final = 1_000
_SEEN_FOR_NS: Final = 600_000_000_000


class Seen(msgspec.Struct):
    """A worker that asked for work."""

    queues: tuple[str, ...]
    at_ns: int


class Workers:
    """The attempts that this process has for remote workers."""

    def __init__(self, clock: Clock, limits: WorkerLimits) -> None:
        self.queues = TaskQueues()
        self._clock, self._limits = clock, limits
        self._partitions: dict[int, Leases] = {}
        self._seen: dict[str, Seen] = {}
        self._closed = False

    def join(self, leases: Leases) -> None:
        """A partition is here."""
        self._partitions[leases.partition] = leases

    def leave(self, leases: Leases) -> None:
        """A partition is here no more."""
        if self._partitions.get(leases.partition) is leases:
            del self._partitions[leases.partition]
        leases.stop()

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
        self.note(worker, queues)
        left, until_ns = wait_s, self._clock.now_ns() + round(wait_s * 1e9)
        while True:
            if self._closed:
                raise ShuttingDown("no attempts are given out any more")
            taken = self.queues.take(Wanted(queues, actions, None), limit)
            if taken or left <= 0:
                given = await self._give(taken, worker, lease_ns or self._limits.lease_ns)
                if given or left <= 0:
                    return given
            else:
                with self.waiting(queues, actions) as woken:
                    await self.until(woken, left)
            left = (until_ns - self._clock.now_ns()) / 1e9

    @contextmanager
    def waiting(self, queues: Sequence[str], actions: Sequence[str]) -> Iterator["asyncio.Future[None]"]:
        """A future that is done when there may be an attempt of this kind for whoever waits."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wanted = Wanted(queues, actions, partial(settle, woken))
        self.queues.wait(wanted)
        try:
            yield woken
        except asyncio.CancelledError:
            self.queues.leave(wanted)
            self.queues.nudge()  # It may have been woken for a task that another one can have now.
            raise
        finally:
            self.queues.leave(wanted)

    async def until(self, woken: "asyncio.Future[None]", seconds: float) -> None:
        """Wait until the future is done or the time is over."""
        timer = self._clock.call_later(seconds, partial(settle, woken))
        try:
            await woken
        finally:
            timer.cancel()

    def fitting(self, queues: Sequence[str], actions: Sequence[str]) -> int:
        """How many attempts there are for whoever asks for these."""
        return self.queues.fitting(Wanted(queues, actions, None))

    async def sought(self, wants: Sequence[tuple[Sequence[str], Sequence[str]]], wait_s: float) -> list[int]:
        """How many attempts there are for each want (queues, actions), once there is one. Nothing is given out."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        looking = [Wanted(queues, actions, partial(settle, woken)) for queues, actions in wants]
        found = [self.queues.fitting(one) for one in looking]
        if any(found) or self._closed:
            return found
        self.queues.look(looking)
        try:
            await self.until(woken, wait_s)
        finally:
            self.queues.look_away(looking)
        return [self.queues.fitting(one) for one in looking]

    async def heartbeat(self, worker: str, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        """Begin the leases of these tokens anew; which of them are still held, and which are over."""
        known = self._seen.get(worker)
        if known is not None:
            known.at_ns = self._clock.now_ns()
        held = []
        for token in tokens:
            if (leases := self._of(token)) is not None:
                leases.extend(token)
                held.append(token)
        return held, [token for token in tokens if self._of(token) is None]

    async def report(self, workflow_id: str, step: str, token: int, outcome: Outcome) -> bool:
        """See Leases.report. Raises PartitionMoving if the run's partition is not here."""
        leases = self._partitions.get(partition_of(parse(workflow_id)))
        if leases is None:
            raise PartitionMoving(f"the partition of {workflow_id} is not here", retry_after_s=1.0)
        return await leases.report(workflow_id, step, token, outcome)

    async def release(self, worker: str, tokens: Sequence[int] | None = None) -> list[int]:
        """Give back attempts that a worker will not finish, None for all of its; the leases that are over now."""
        if tokens is None:
            tokens = [task.token for task in self._held() if task.worker == worker]
        for token in tokens:
            if (leases := self._of(token)) is not None:
                leases.release(worker, [token])
        return [token for token in tokens if self._of(token) is None]

    async def overview(self) -> dict[str, Any]:
        """What waits, who works on what, and who asked lately."""
        waiting, held = self.queues.counts(), list(self._held())
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
        self.queues.close()

    async def _give(self, tasks: list[Task], worker: str, lease_ns: int) -> list[Task]:
        """Lease them in their partitions. Raises what went wrong only if none could be leased."""
        shares: dict[Leases, list[Task]] = {}
        for task in tasks:
            shares.setdefault(task.leases, []).append(task)
        giving = [asyncio.ensure_future(leases.give(share, worker, lease_ns)) for leases, share in shares.items()]
        try:
            answers = await asyncio.gather(*giving, return_exceptions=True)
        except asyncio.CancelledError:
            await asyncio.gather(*giving, return_exceptions=True)
            for one in giving:
                if not one.cancelled() and one.exception() is None:
                    await self.release(worker, [task.token for task in one.result()])
            raise
        given = [task for answer in answers if isinstance(answer, list) for task in answer]
        wrong = [answer for answer in answers if isinstance(answer, BaseException)]
        if wrong and not (given and all(isinstance(one, KnhkError) for one in wrong)):
            raise wrong[0]
        return given

    def _held(self) -> Iterator[Task]:
        return (task for leases in self._partitions.values() for task in leases.held)

    def _of(self, token: int) -> Leases | None:
        """The leases of which a token is good. Older tokens do not name their partition."""
        named = self._partitions.get(partition_of_token(token))
        if named is not None and named.holds(token):
            return named
        return next((one for one in self._partitions.values() if one.holds(token)), None)

    def note(self, worker: str, queues: Sequence[str]) -> None:
        """A worker has asked for work."""
        now = self._clock.now_ns()
        self._seen[worker] = Seen(tuple(queues), now)
        if len(self._seen) > _WORKERS_KEPT:
            self._seen = {name: seen for name, seen in self._seen.items() if now - seen.at_ns < _SEEN_FOR_NS}
            while len(self._seen) > _WORKERS_KEPT:
                del self._seen[next(iter(self._seen))]


def settle(woken: "asyncio.Future[None]") -> None:
    """End a wait, if it has not ended."""
    if not woken.done():
        woken.set_result(None)
