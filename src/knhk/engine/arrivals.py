"""Bringing a run into memory, once: whoever needs a run that is on disk comes through here, one at a time per run.

A long run that has just left memory is kept for a while: a parent whose thousand children end one after the other would
else be folded from all of its receipts a thousand times. It is what the journal says as long as nobody else writes, and
everybody who writes comes through here.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from knhk.domain.errors import KnhkError
from knhk.engine.live import LiveRun
from knhk.engine.loader import Loader
from knhk.engine.scheduler import Scheduler

_LONG: Final = 32
"""A run with fewer receipts is folded again in no time."""
_KEPT_RECEIPTS: Final = 200_000
"""So many receipts may the runs have together that are kept, so that waiting costs no memory to speak of."""


class Arrivals:
    """Holds runs, so that there are never two LiveRun objects that could fork one chain."""

    def __init__(self, loader: Loader, scheduler: Scheduler) -> None:
        self._loader, self._scheduler = loader, scheduler
        self._locks: dict[int, asyncio.Lock] = {}
        self._holders: Counter[int] = Counter()
        self._open = asyncio.Event()
        self._kept: OrderedDict[int, LiveRun] = OrderedDict()
        self._kept_receipts = 0

    def open(self) -> None:
        """All runs that were under way are in memory."""
        self._open.set()

    @asynccontextmanager
    async def hold(self, workflow_id: int) -> AsyncIterator[LiveRun]:
        """The run, from memory or from the journal; nobody else gets it through here until it is let go.

        While the engine starts this waits until all runs that were under way are in memory.

        Raises:
            WorkflowNotFound, ReceiptCorrupt: see Loader.fold.
        """
        if not self._open.is_set():
            await self._open.wait()
        lock = self._locks.setdefault(workflow_id, asyncio.Lock())
        self._holders[workflow_id] += 1
        try:
            async with lock:
                live = self._scheduler.find(workflow_id) or self._taken(workflow_id)
                if live is None or live.run.ended:
                    if live is not None and live.batch is not None:
                        await live.batch.committed()
                    live = await self._loader.load(workflow_id)
                yield live
        finally:
            self._let_go(workflow_id)

    @asynccontextmanager
    async def decide(self, workflow_id: int) -> AsyncIterator[LiveRun]:
        """As `hold`, for somebody who is told what follows from the run as it is: not before that is durable.

        Also a refusal, and that there is nothing to do, tell what may not be in the journal yet.

        Raises what keeps the run's commit from being durable, while it is being tried again.
        """
        batch = None
        try:
            async with self.hold(workflow_id) as live:
                batch = live.batch
                yield live
        except KnhkError:
            if batch is not None:
                await batch.committed()
            raise
        if batch is not None:
            await batch.committed()

    def keep(self, live: LiveRun) -> None:
        """A run has left memory, and is what the journal says."""
        if live.run.seq < _LONG:
            return
        self._kept[live.run.workflow_id] = live
        self._kept_receipts += live.run.seq
        while self._kept_receipts > _KEPT_RECEIPTS:
            _, oldest = self._kept.popitem(last=False)
            self._kept_receipts -= oldest.run.seq

    def _taken(self, workflow_id: int) -> LiveRun | None:
        live = self._kept.pop(workflow_id, None)
        if live is not None:
            self._kept_receipts -= live.run.seq
        return live

    def is_held(self, workflow_id: int) -> bool:
        """Whether somebody has the run, or is about to."""
        return workflow_id in self._locks

    @asynccontextmanager
    async def bar(self, workflow_ids: Sequence[int]) -> AsyncIterator[None]:
        """Let nobody have these runs until the end of the block; nobody may have one now. Who wants one waits."""
        locks = {one: asyncio.Lock() for one in workflow_ids}
        for workflow_id, lock in locks.items():
            await lock.acquire()  # new, so that this does not wait
            self._taken(workflow_id)
            self._locks[workflow_id] = lock
            self._holders[workflow_id] += 1
        try:
            yield
        finally:
            for workflow_id, lock in locks.items():
                lock.release()
                self._let_go(workflow_id)

    def _let_go(self, workflow_id: int) -> None:
        self._holders[workflow_id] -= 1
        if not self._holders[workflow_id]:
            del self._holders[workflow_id], self._locks[workflow_id]

    async def wake(self, workflow_id: int) -> None:
        """Load a parked run whose time has come and let it go on. Any other is left alone.

        What was read from the store some time ago may be out of date: the run itself says whether it is due.
        """
        if self._scheduler.find(workflow_id) is not None:
            return
        async with self.hold(workflow_id) as live:
            if self._scheduler.find(workflow_id) is None and not live.run.ended and self._scheduler.is_due(live.run):
                self._scheduler.take_in(live)
