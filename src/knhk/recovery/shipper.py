"""Continuous shipping: what is committed goes to another place within about a second, as segments.

Reads the journal beside the runs, in a thread, in segments of bounded size. A segment counts as shipped when it has
been read back and is what was written. Then the cursor moves, stored like that of a projection: after a crash the place
itself says what arrived meanwhile. A place that fails costs nothing but lag: blocks wait in the journal, not in memory.
Invariant: the segments of a history are the blocks of one chain, each at least once, with no gap.

In a cluster a partition has one owner after the other. Each ships under a history of its own, and stops when it finds
that there is a later one (owners.py).
"""

import asyncio
import os
from collections.abc import Callable
from typing import Final

from knhk.domain.errors import BackupCorrupt, BackupUnavailable, Corrupt, KnhkError, NotFound
from knhk.domain.receipt import SignedBlock
from knhk.observability.logs import get
from knhk.persistence.stored_blocks import StoredRows
from knhk.persistence.verification import CheckSignature
from knhk.ports.environment import Clock, Signer
from knhk.ports.journal import Journal
from knhk.ports.storage import Projections
from knhk.recovery import histories, owners, segments
from knhk.recovery.blob_shipping import BlobShipping
from knhk.recovery.histories import History, Reader
from knhk.recovery.places import Place
from knhk.recovery.segments import Body, Header

SEGMENT_BYTES: Final = 8 << 20
MOST_BLOCKS: Final = 4096
CURSOR_ROW: Final = b"cursor"
_REMEMBERED: Final = 10_000
_LONGEST_PAUSE_S: Final = 30.0
_LAST_CHANCE_S: Final = 10.0
_TIMEOUT_S: Final = 30
_OK: Final = "ok"


class Shipper:
    """Implements ports.duty.Duty for one partition. `longest_lag_ns` is what health calls too much."""

    room = "recovery"

    def __init__(
        self,
        url: str,
        rows: Callable[[], StoredRows],
        journal: Journal,
        projections: Projections,
        signer: Signer,
        clock: Clock,
        *,
        node_id: str,
        partition: int,
        interval_ns: int,
        check: CheckSignature,
        longest_lag_ns: int,
        blobs: BlobShipping | None = None,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        """`epoch` is that of the owner where a partition can have another one, else 0."""
        self._url, self._rows, self._journal, self._projections = url, rows, journal, projections
        self._signer, self._clock, self._node_id, self._partition = signer, clock, node_id, partition
        self._check, self._blobs, self._epoch = check, blobs, epoch
        self._interval_ns, self._longest_lag_ns = interval_ns, longest_lag_ns
        self._fold = fold_of(partition)
        self._place: Place | None = None
        self._history = ""
        self._descriptors: set[bytes] = set()
        self._task: asyncio.Task[None] | None = None
        self._failure = ""
        self._attempted: int | None = None
        self._behind_since_ns = 0
        self._log = get("knhk.recovery")
        self._turn = asyncio.Lock()
        self._asked, self._news = asyncio.Event(), asyncio.Event()
        self.cursor = -1
        self.segments_total = self.bytes_total = self.failures_total = 0

    async def start(self) -> None:
        """Begin. The place need not answer yet."""
        self._task = asyncio.create_task(self._work(), name="shipper")

    async def stop(self) -> None:
        """Ship what is committed, if that does not take long, and end."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(_LAST_CHANCE_S):
                await self.ship_all()
        except (KnhkError, TimeoutError) as error:
            self._log.warning("the last blocks are not shipped; the next start does it", reason=str(error))

    async def arrived(self, height: int, limit_s: float) -> bool:
        """Ask for a block to be shipped at once, and wait; False if it has not arrived in this time."""
        try:
            async with asyncio.timeout(limit_s):
                while self.cursor < height:
                    self._news.clear()
                    self._asked.set()
                    await self._news.wait()
        except TimeoutError:
            return self.cursor >= height
        return True

    async def ship_all(self) -> int:
        """Ship all that is committed; the last height. Raises what the place raises, and Fenced."""
        async with self._turn:
            await self._ship()
        return self.cursor

    def health(self) -> str:
        """Whether committed blocks arrive in time."""
        lag_ns = self.lag_ns()
        if lag_ns <= self._longest_lag_ns:
            return _OK
        return f"shipping is {lag_ns // 1_000_000_000} s behind: {self._failure or 'the place is slow'}"

    def lag_ns(self) -> int:
        """For how long the oldest block that has not arrived has been committed; 0 if all have arrived."""
        return max(0, self._clock.now_ns() - self._behind_since_ns) if self._behind_since_ns else 0

    def figures(self) -> dict[str, float]:
        """For the metrics."""
        return {
            "ship_lag_seconds": self.lag_ns() / 1e9,
            "shipped_height": float(self.cursor),
            "shipped_segments_total": float(self.segments_total),
            "shipped_bytes_total": float(self.bytes_total),
            "ship_failures_total": float(self.failures_total),
        }

    async def _work(self) -> None:
        # Looked for twice an interval, so that a block is on its way well before one has passed.
        step_s = pause_s = self._interval_ns / 2e9
        while True:
            self._asked.clear()
            try:
                await self.ship_all()
                if self._failure:
                    self._log.info("shipping goes on", height=self.cursor)
                self._failure, pause_s = "", step_s
            except Exception as error:  # whatever it is, the next attempt may succeed, and health must tell of it
                self.failures_total += 1
                reason = error.message if isinstance(error, KnhkError) else f"{type(error).__name__}: {error}"
                if reason != self._failure:
                    self._log.error("shipping fails", reason=reason, exc_info=not isinstance(error, KnhkError))
                self._failure, pause_s = reason, min(max(pause_s, 0.1) * 2, _LONGEST_PAUSE_S)
            await self._pause(pause_s)

    async def _pause(self, pause_s: float) -> None:
        """Until the time is over, or, if the place works, somebody waits for a block."""
        if self._failure:
            await self._clock.sleep(pause_s)
            return
        waits = [asyncio.ensure_future(self._clock.sleep(pause_s)), asyncio.ensure_future(self._asked.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    async def _ship(self) -> None:
        """Ship everything that is committed by now."""
        head = await self._journal.head(self._partition)
        height = -1 if head is None else head.block().height
        await self._measure(height)
        if self._place is None:
            await self._connect()
            await self._measure(height)
        assert self._place is not None
        if self._blobs is not None:
            await asyncio.to_thread(self._blobs.ship, self._place)
        while self.cursor < height:
            header = await asyncio.to_thread(self._ship_segment, self._rows(), self.cursor + 1, height)
            self.cursor = header.last
            self._news.set()
            await self._remember()
            await self._measure(height)

    async def _measure(self, height: int) -> None:
        oldest = await self._block(self.cursor + 1) if self.cursor < height else None
        self._behind_since_ns = 0 if oldest is None else oldest.block().at_ns

    def _ship_segment(self, rows: StoredRows, first: int, height: int) -> Header:
        assert self._place is not None
        if len(self._descriptors) > _REMEMBERED:
            self._descriptors.clear()
        known = set(self._descriptors)
        # After a failure the same blocks again, so that whatever arrived of them is replaced.
        last = min(height, first + MOST_BLOCKS - 1) if self._attempted is None else self._attempted
        blocks = rows.blocks(self._partition, first, last, known, SEGMENT_BYTES)
        body = Body(*rows.keys(), blocks, rows.prune_records(blocks))
        header, raw = segments.encode(body, history=self._history, node_id=self._node_id, signer=self._signer)
        name = segments.name_of(self._history, self._partition, header.first, header.last)
        self._attempted = header.last
        self._require_ownership(self._place)
        self._place.put(name, raw)
        try:
            arrived = self._place.read(name)
        except NotFound as error:
            raise BackupUnavailable(f"{self._place} said that it has {name}, and does not have it") from error
        if arrived != raw:
            raise BackupUnavailable(f"{self._place} said that it has {name}, and has something else there")
        self._require_ownership(self._place)
        self._descriptors, self._attempted = known, None
        self.segments_total += 1
        self.bytes_total += len(raw)
        return header

    def _require_ownership(self, place: Place) -> None:
        if epoch := self._epoch():
            owners.require(place, epoch)

    # -- Where to go on

    async def _connect(self) -> None:
        """Find out what is in the place already, and under which history to go on."""
        place = await asyncio.to_thread(Place.of, self._url, make=True, timeout_s=_TIMEOUT_S)
        if epoch := self._epoch():
            mine = owners.Claim(epoch, self._node_id, self._clock.now_ns())
            await asyncio.to_thread(owners.claim, place, mine)
        self._history, self.cursor = read_cursor(await self._projections.row(self._fold, CURSOR_ROW))
        if not self._history or not await asyncio.to_thread(self._is_there, place):
            await self._begin(place, parent="", cursor=-1)
        elif await asyncio.to_thread(self._is_anothers, place) or not await self._catch_up(place):
            await self._begin(place, parent=self._history, cursor=self.cursor)
        if self._blobs is not None:
            await asyncio.to_thread(self._blobs.connect, place)
        self._place = place
        self._descriptors.clear()
        await self._remember()

    def _is_there(self, place: Place) -> bool:
        """Whether the place knows our history, with the last block that we have shipped."""
        try:
            known = Reader(place, None, self._check).read(self._history)
        except NotFound:
            return False
        if self.cursor <= known.inherited(self._partition):
            return True
        return any(first <= self.cursor for first, _ in self._arrived(place, self.cursor))

    def _is_anothers(self, place: Place) -> bool:
        """Whether our history is that of an owner before this one, which perhaps does not know yet."""
        if not self._epoch():
            return False
        return Reader(place, None, self._check).read(self._history).node_id != self._node_id

    def _arrived(self, place: Place, height: int) -> list[tuple[int, int]]:
        """First and last height of the segments that end at a height or later, in order."""
        after = segments.name_of(self._history, self._partition, max(0, height - MOST_BLOCKS), 0)
        folder = segments.folder(self._history, self._partition)
        found = [segments.heights_of(one.name) for one in place.entries(folder, after=after)]
        return sorted(one for one in found if one is not None and one[1] >= height)

    async def _catch_up(self, place: Place) -> bool:
        """Move the cursor over what arrived before a crash; False if it is of another line of events than ours.

        What did not arrive whole, and was never counted as shipped, is removed.
        """
        for first, last in await asyncio.to_thread(self._arrived, place, self.cursor + 1):
            name = segments.name_of(self._history, self._partition, first, last)
            try:
                raw = await asyncio.to_thread(place.read, name)
                header, _ = segments.decode(raw, name, None, self._check)
            except BackupCorrupt:  # A crash kept us from seeing that it did not arrive whole. It is shipped again.
                await asyncio.to_thread(place.delete, [name])
                continue
            ours = await self._block(last)
            if ours is None or ours.hash().hex() != header.last_block_hash:
                return False
            if first <= self.cursor + 1:
                self.cursor = last
        return True

    async def _begin(self, place: Place, *, parent: str, cursor: int) -> None:
        last = await self._block(cursor) if cursor >= 0 else None
        if cursor >= 0 and last is None:
            raise Corrupt(
                f"block {cursor} of partition {self._partition} was shipped, and the journal does not have it"
            )
        heads = {} if last is None else {str(self._partition): (cursor, last.hash().hex())}
        begun = History(os.urandom(8).hex(), parent, self._clock.now_ns(), self._node_id, heads, self._epoch())
        await asyncio.to_thread(histories.write, place, begun, self._signer)
        self._history, self.cursor = begun.history, cursor
        self._log.info("a history begins", history=begun.history, parent=parent, height=cursor, place=str(place))

    async def _block(self, height: int) -> SignedBlock | None:
        page = await self._journal.blocks(self._partition, height, 1) if height >= 0 else []
        return page[0] if page else None

    async def _remember(self) -> None:
        row: dict[bytes, bytes | None] = {CURSOR_ROW: written_cursor(self._history, self.cursor)}
        await self._projections.store(self._fold, row, max(0, self.cursor))


def fold_of(partition: int) -> str:
    """The namespace of a partition's cursor among the rows of projections."""
    return f"shipping-{partition}"


def written_cursor(history: str, height: int) -> bytes:
    """The row that remembers what was shipped: the history, and the height of the last block (-1: none)."""
    return f"{history} {height}".encode()


def read_cursor(row: bytes | None) -> tuple[str, int]:
    """What `written_cursor` wrote; no history if nothing was."""
    history, _, height = (b"" if row is None else row).decode().partition(" ")
    return (history, int(height)) if height else ("", -1)
