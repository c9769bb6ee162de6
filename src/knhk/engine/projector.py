"""Tails the journal and feeds the folds, off the hot path and in batches.

The rows of the runs are written together with the height of the last block in them, so that a restart goes on from
there. What was just committed is handed over in memory; if that queue overflows, or after a restart, the projector
reads the journal instead: both ways give the same rows.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from knhk.domain import summary as rows
from knhk.domain.errors import Unavailable
from knhk.domain.event import Event, Submitted
from knhk.domain.identifier import partition_of
from knhk.domain.plan import Plan
from knhk.domain.run import RunState
from knhk.domain.summary import Summary
from knhk.engine.committer import Batch
from knhk.ports.environment import Clock
from knhk.ports.fold import Fold
from knhk.ports.journal import Journal
from knhk.ports.storage import Projections

FOLD: Final = "runs"
_PAUSE_S: Final = 0.02
_QUEUE: Final = 2_000
_BLOCKS: Final = 64
_RETRY_S: Final = 0.25
_Answer = TypeVar("_Answer")
STATE_CODES: Final = {state.value: bytes([number]) for number, state in enumerate(RunState)}


def row_key(workflow_id: int) -> bytes:
    """Key of a run's row: newest first when read backwards."""
    return b"r" + partition_of(workflow_id).to_bytes(2) + workflow_id.to_bytes(8)


def state_key(state: str, workflow_id: int) -> bytes:
    """Key of a run in the index of its state. Completed runs are not in it: they are nearly all of the rows."""
    return b"s" + STATE_CODES[state] + partition_of(workflow_id).to_bytes(2) + workflow_id.to_bytes(8)


class Projector:
    """Keeps the rows of one partition's runs, and feeds the other folds."""

    def __init__(
        self, partition: int, journal: Journal, projections: Projections, clock: Clock, folds: Sequence[Fold]
    ) -> None:
        self._partition, self._journal, self._projections, self._clock = partition, journal, projections, clock
        self._folds = folds
        self._queue: deque[Batch] = deque(maxlen=_QUEUE)
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.cursor = -1
        self.failed: BaseException | None = None

    async def start(self) -> None:
        """Begin where the stored rows end."""
        self.cursor = await self._projections.cursor(FOLD)
        self._task = asyncio.create_task(self._work(), name="projector")
        self._news.set()

    async def stop(self) -> None:
        """Fold what is committed, then end. What cannot be written now is folded again after the next start."""
        self._stopping = True
        self._news.set()
        if self._task is not None:
            # Not cancelled: rows that were folded and not written would be missing behind a cursor that moved on.
            await asyncio.gather(self._task, return_exceptions=True)

    def feed(self, batch: Batch) -> None:
        """A batch is durable. Batches come in the order of their heights; what falls out of the queue is read again."""
        self._queue.append(batch)
        self._news.set()

    async def catch_up(self) -> None:
        """Fold everything that is committed by now."""
        dirty: dict[int, Summary] = {}
        old: dict[int, str | None] = {}
        while self._queue:
            batch = self._queue.popleft()
            if batch.height <= self.cursor:
                continue
            if batch.height > self.cursor + 1:
                await self._read_journal(batch.height - 1, dirty, old)
            for piece in batch.pieces:
                run = piece.live.run
                await self._take(run.workflow_id, piece.events, run.plan, dirty, old)
            self.cursor = batch.height
        await self._write(dirty, old)

    async def _work(self) -> None:
        try:
            head = await self._journal.head(self._partition)
            if head is not None:
                await self._catch_up_to(head.block().height)
            while self._queue or not self._stopping:
                await self._news.wait()
                self._news.clear()
                await self.catch_up()
                await self._clock.sleep(_PAUSE_S)
        except Exception as error:
            self.failed = error

    async def _catch_up_to(self, height: int) -> None:
        while self.cursor < height and not self._stopping:
            dirty: dict[int, Summary] = {}
            old: dict[int, str | None] = {}
            await self._read_journal(min(height, self.cursor + _BLOCKS), dirty, old)
            await self._write(dirty, old)
            await self._clock.sleep(0)

    async def _read_journal(self, to_height: int, dirty: dict[int, Summary], old: dict[int, str | None]) -> None:
        while self.cursor < to_height:
            blocks = await self._patiently(self._journal.blocks, self._partition, self.cursor + 1, _BLOCKS)
            if not blocks:
                return
            for signed in blocks:
                if self.cursor >= to_height:
                    return
                for sealed in await self._patiently(self._journal.block_receipts, signed):
                    receipt = sealed.receipt()
                    await self._take(receipt.workflow_id, (receipt.event(),), None, dirty, old)
                self.cursor += 1

    async def _take(
        self,
        workflow_id: int,
        events: Iterable[Event],
        plan: Plan | None,
        dirty: dict[int, Summary],
        old: dict[int, str | None],
    ) -> None:
        summary = dirty.get(workflow_id)
        if summary is None:
            raw = None
            if not isinstance(next(iter(events)).detail, Submitted):
                raw = await self._patiently(self._projections.row, FOLD, row_key(workflow_id))
            summary = rows.decode(raw) if raw is not None else Summary(workflow_id)
            dirty[workflow_id] = summary
            old[workflow_id] = summary.state if raw is not None else None
        for event in events:
            rows.fold(summary, event)
            action = plan.action_of(event.step) if event.step and plan is not None else ""
            for fold in self._folds:
                fold.take(summary, event, action)

    async def _write(self, dirty: dict[int, Summary], old: dict[int, str | None]) -> None:
        if not dirty:
            return
        changes: dict[bytes, bytes | None] = {}
        for workflow_id, summary in dirty.items():
            changes[row_key(workflow_id)] = rows.encode(summary)
            before = old[workflow_id]
            if before is not None and before != summary.state and before != RunState.COMPLETED:
                changes[state_key(before, workflow_id)] = None
            if summary.state != RunState.COMPLETED:
                changes[state_key(summary.state, workflow_id)] = b""
        await self._patiently(self._projections.store, FOLD, changes, self.cursor)

    async def _patiently(self, ask: Callable[..., Awaitable[_Answer]], *given: Any) -> _Answer:
        """Ask the store again until it answers. Raises Unavailable only once the projector is to stop."""
        while True:
            try:
                return await ask(*given)
            except Unavailable:
                if self._stopping:
                    raise
            await self._clock.sleep(_RETRY_S)
