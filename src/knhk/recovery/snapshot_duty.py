"""Automatic snapshots: one every interval if anything was committed since the last, the oldest pruned."""

import asyncio
from typing import Final

from knhk.domain.errors import KnhkError
from knhk.observability.logs import get
from knhk.ports.environment import Clock
from knhk.ports.journal import Journal
from knhk.recovery.snapshots import Snapshot, Snapshots, listed

_OK: Final = "ok"
_LATE: Final = 3
_RETRY_S: Final = 15.0


class SnapshotDuty:
    """Implements ports.duty.Duty. `interval_ns` is the time between snapshots, `keep` how many are kept."""

    room = "recovery"

    def __init__(
        self, snapshots: Snapshots, journal: Journal, clock: Clock, *, partition: int, interval_ns: int, keep: int
    ) -> None:
        self._snapshots, self._journal, self._clock = snapshots, journal, clock
        self._partition, self._interval_ns, self._keep = partition, interval_ns, keep
        self._task: asyncio.Task[None] | None = None
        self._failure = ""
        self._height = -1
        self._log = get("knhk.recovery")
        self.taken_total = self.failures_total = 0
        self.newest_at_ns = self._since_ns = 0

    async def start(self) -> None:
        """Tidy up and begin; the time of the next snapshot counts from the newest one that is there."""
        self._since_ns = self._clock.now_ns()
        try:
            await self._snapshots.start()
        except OSError as error:
            self._failed(str(error))
        for newest in listed(self._snapshots.directory)[-1:]:
            self.newest_at_ns, self._height = newest.manifest.made_at_ns, newest.height
        self._task = asyncio.create_task(self._work(), name="snapshots")

    async def stop(self) -> None:
        """End, when the snapshot under way is done."""
        if self._task is not None:
            async with self._snapshots.turn:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def health(self) -> str:
        """Whether snapshots are made when they should be."""
        if self._failure:
            return f"snapshots fail: {self._failure}"
        last = max(self.newest_at_ns, self._since_ns)
        if self._clock.now_ns() - last > _LATE * self._interval_ns:
            return f"no snapshot for {(self._clock.now_ns() - last) // 1_000_000_000} s"
        return _OK

    def figures(self) -> dict[str, float]:
        """For the metrics."""
        return {
            "snapshots_total": float(self.taken_total),
            "snapshot_failures_total": float(self.failures_total),
            "snapshot_age_seconds": (self._clock.now_ns() - self.newest_at_ns) / 1e9 if self.newest_at_ns else -1.0,
        }

    async def take(self) -> Snapshot:
        """Take one now, and remove those that are too many. Raises as Snapshots.take does."""
        snapshot = await self._snapshots.take()
        self.taken_total += 1
        self.newest_at_ns, self._height = snapshot.manifest.made_at_ns, snapshot.height
        pruned = await self._snapshots.prune(self._keep)
        self._log.info("snapshot", path=str(snapshot.path), height=snapshot.height, pruned=len(pruned))
        return snapshot

    async def _work(self) -> None:
        while True:
            due_ns = self.newest_at_ns + self._interval_ns
            await self._clock.sleep(max(0.0, (due_ns - self._clock.now_ns()) / 1e9))
            if self._clock.now_ns() < self.newest_at_ns + self._interval_ns:
                continue  # One was taken on request meanwhile.
            try:
                await self._take_if_needed()
                self._failure = ""
            except Exception as error:  # whatever it is, the next attempt may succeed, and health must tell of it
                self._failed(error.message if isinstance(error, KnhkError) else f"{type(error).__name__}: {error}")
                await self._clock.sleep(min(_RETRY_S, self._interval_ns / 1e9))

    async def _take_if_needed(self) -> None:
        head = await self._journal.head(self._partition)
        height = -1 if head is None else head.block().height
        if height == self._height and (height < 0 or listed(self._snapshots.directory)):
            self.newest_at_ns = self._clock.now_ns()  # The newest one holds all there is: it is as good as a new one.
            return
        await self.take()

    def _failed(self, why: str) -> None:
        self.failures_total += 1
        if why != self._failure:
            self._log.error("a snapshot failed", reason=why)
        self._failure = why
