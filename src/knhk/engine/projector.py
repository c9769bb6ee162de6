"""Tails the journal and feeds the folds, off the hot path and in batches.

The rows of the runs are written together with the height of the last block in them, so that a restart goes on from
there. What was just committed is handed over in memory; if that queue overflows, or after a restart, the projector
reads the journal instead: both ways give the same rows.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from knhk.domain import definition
from knhk.domain import summary as rows
from knhk.domain.errors import Unavailable
from knhk.domain.event import (
    DefinitionPut,
    DefinitionRetired,
    Detail,
    Event,
    EventReceived,
    RecordDetail,
    Started,
    StepCompleted,
    Submitted,
)
from knhk.domain.identifier import partition_of
from knhk.domain.plan import Plan
from knhk.domain.run import RunState
from knhk.domain.summary import Summary
from knhk.engine import cache_rows, limit_rows, topic_rows
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


DEFINITIONS: Final = b"d"
_LAST_BYTE: Final = b"\xff"


def definition_key(name: str) -> bytes:
    """Key of a definition's row: names in ascending order when read backwards."""
    return DEFINITIONS + bytes(255 - byte for byte in name.encode()) + _LAST_BYTE


class _Changes:
    """What a batch or some blocks change: runs by id with the state that their row had, and other rows by key."""

    __slots__ = ("cached", "limited", "old", "rows", "summaries", "topics")

    def __init__(self) -> None:
        self.limited = self.cached = False
        self.summaries: dict[int, Summary] = {}
        self.old: dict[int, str | None] = {}
        self.topics: dict[int, set[bytes]] = {}
        self.rows: dict[bytes, bytes | None] = {}

    def begin(self, workflow_id: int) -> Summary:
        """The row of a run that has none yet."""
        summary = self.summaries[workflow_id] = Summary(workflow_id)
        self.old[workflow_id] = None
        return summary


class Projector:
    """Keeps the rows of one partition's runs, and feeds the other folds."""

    def __init__(
        self, partition: int, journal: Journal, projections: Projections, clock: Clock, folds: Sequence[Fold]
    ) -> None:
        self._partition, self._journal, self._projections, self._clock = partition, journal, projections, clock
        self._folds = folds  # Duties may add theirs until the start.
        self._takers: dict[type[Detail], list[Callable[[Summary, Event, str], None]]] = {}
        self._queue: deque[Batch] = deque(maxlen=_QUEUE)
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.cursor = self.written = self.began = -1
        self.at_rest = True
        """Whether the folds have seen exactly what is up to `cursor`; `began` is where it stood at the start."""
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self.failed: BaseException | None = None

    async def start(self) -> None:
        """Begin where the stored rows end."""
        self.cursor = self.written = self.began = await self._projections.cursor(FOLD)
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

    async def reached(self, height: int) -> None:
        """Wait until the rows show the block of this height and all before it; not for ever if that cannot be."""
        if self.written >= height or self._task is None or self._task.done():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((height, waiter))
        self._news.set()
        await waiter

    async def catch_up(self) -> None:
        """Fold everything that is committed by now."""
        changes = _Changes()
        while self._queue:
            batch = self._queue.popleft()
            if batch.height <= self.cursor:
                continue
            if batch.height > self.cursor + 1:
                await self._read_journal(batch.height - 1, changes)
            self.at_rest = False
            for piece in batch.pieces:
                run = piece.live.run
                if type(piece.events[0].detail) is Submitted:
                    self._fold(changes.begin(run.workflow_id), 0, piece.events, run.plan, changes)
                else:
                    await self._take(run.workflow_id, piece.slice.first_seq, piece.events, run.plan, changes)
            self.cursor = batch.height
        await self._write(changes)

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
        finally:
            self._tell(None)

    async def _catch_up_to(self, height: int) -> None:
        while self.cursor < height and not self._stopping:
            changes = _Changes()
            await self._read_journal(min(height, self.cursor + _BLOCKS), changes)
            await self._write(changes)
            await self._clock.sleep(0)

    async def _read_journal(self, to_height: int, changes: _Changes) -> None:
        while self.cursor < to_height:
            blocks = await self._patiently(self._journal.blocks, self._partition, self.cursor + 1, _BLOCKS)
            if not blocks:
                return
            for signed in blocks:
                if self.cursor >= to_height:
                    return
                for sealed in await self._patiently(self._journal.block_receipts, signed):
                    if sealed.pruned_by is not None:
                        continue
                    receipt = sealed.receipt()
                    await self._take(receipt.workflow_id, receipt.seq, (receipt.event(),), None, changes)
                self.cursor += 1

    async def _take(
        self, workflow_id: int, seq: int, events: Sequence[Event], plan: Plan | None, changes: _Changes
    ) -> None:
        """Take in events of a run, of which the first has the number `seq`."""
        self.at_rest = False
        first = events[0].detail
        if isinstance(first, RecordDetail):
            await self._take_record(workflow_id, events, changes)
            return
        summary = changes.summaries.get(workflow_id)
        if summary is None:
            raw = None
            if not isinstance(first, Submitted):
                raw = await self._patiently(self._projections.row, FOLD, row_key(workflow_id))
            summary = rows.decode(raw) if raw is not None else Summary(workflow_id)
            changes.summaries[workflow_id] = summary
            changes.old[workflow_id] = summary.state if raw is not None else None
            if summary.waiting:
                changes.topics[workflow_id] = topic_rows.topics_of(summary)
        self._fold(summary, seq, events, plan, changes)

    def _fold(self, summary: Summary, seq: int, events: Sequence[Event], plan: Plan | None, changes: _Changes) -> None:
        """Fold events into a run's row, and let the other folds see them."""
        takers, fold = self._takers, rows.fold
        limited = summary.concurrency_key or summary.rate_key
        for number, event in enumerate(events, seq):
            fold(summary, event)
            detail = event.detail
            kind = type(detail)
            if isinstance(detail, StepCompleted):
                if detail.cache_key:
                    changes.rows.update(cache_rows.rows_of(summary.workflow_id, number, event))
                    changes.cached = True
            elif kind is Submitted:
                limited = summary.concurrency_key or summary.rate_key
            if limited:
                changes.rows.update(limit_rows.rows_of(summary, event))
                changes.limited |= kind is Started
            taking = takers.get(kind)
            if taking is None:
                taking = takers[kind] = [one.take for one in self._folds if kind in one.kinds]
            if taking:
                action = plan.action_of(event.step) if event.step and plan is not None else ""
                for take in taking:
                    take(summary, event, action)

    async def _take_record(self, record_id: int, events: Sequence[Event], changes: _Changes) -> None:
        for event in events:
            detail = event.detail
            if isinstance(detail, EventReceived):
                key, row = topic_rows.event_row(record_id, event)
                topic, now = topic_rows.topic_of(detail.name, detail.correlate), self._clock.now_ns()
                changes.rows.update(await self._patiently(topic_rows.outdated, self._projections, FOLD, topic, now))
                changes.rows[key] = row
            elif isinstance(detail, DefinitionPut | DefinitionRetired):
                key = definition_key(detail.name)
                raw = changes.rows[key] if key in changes.rows else await self._row(key)
                changes.rows[key] = definition.fold_row(raw, record_id, event)

    async def _row(self, key: bytes) -> bytes | None:
        return await self._patiently(self._projections.row, FOLD, key)

    async def _write(self, changes: _Changes) -> None:
        if not changes.summaries and not changes.rows:
            return
        if changes.limited:
            now = self._clock.now_ns()
            changes.rows.update(await self._patiently(limit_rows.outdated, self._projections, FOLD, now))
        if changes.cached:
            old = await self._patiently(cache_rows.outdated, self._projections, FOLD, self._clock.now_ns())
            changes.rows = old | changes.rows
        written = changes.rows
        for workflow_id, summary in changes.summaries.items():
            written[row_key(workflow_id)] = rows.encode(summary)
            if summary.waiting or workflow_id in changes.topics:
                written.update(topic_rows.rows_of(summary, changes.topics.get(workflow_id, set())))
            before = changes.old[workflow_id]
            if before is not None and before != summary.state and before != RunState.COMPLETED:
                written[state_key(before, workflow_id)] = None
            if summary.state != RunState.COMPLETED:
                written[state_key(summary.state, workflow_id)] = b""
        await self._patiently(self._projections.store, FOLD, written, self.cursor)
        self.written = self.cursor
        self.at_rest = True
        if self._waiting:
            self._tell(self.written)

    def _tell(self, height: int | None) -> None:
        """Wake those who wait for the rows up to this height; all of them, if no more rows will come."""
        waiting, self._waiting = self._waiting, []
        for wanted, waiter in waiting:
            if height is not None and wanted > height:
                self._waiting.append((wanted, waiter))
            elif not waiter.done():
                waiter.set_result(None)

    async def _patiently(self, ask: Callable[..., Awaitable[_Answer]], *given: Any) -> _Answer:
        """Ask the store again until it answers. Raises Unavailable only once the projector is to stop."""
        while True:
            try:
                return await ask(*given)
            except Unavailable:
                if self._stopping:
                    raise
            await self._clock.sleep(_RETRY_S)
