"""What keeps the blob area in order in the background: interrupted erasures are finished, unused blobs removed, and
those that are encrypted with older keys encrypted anew.

A blob goes when no run refers to it and nobody sent it again or referred to it for `grace`. Once after each start and
once a day the marks are looked through for those of runs that were pruned, or whose commit a crash prevented.
"""

import asyncio
from pathlib import Path
from typing import Any, Final

from knhk.domain.errors import Corrupt, KnhkError, StorageUnavailable
from knhk.domain.times import rfc3339
from knhk.domain.units import DAY
from knhk.observability.logs import get
from knhk.observability.readings import WARNING
from knhk.persistence.blob_area import BlobArea
from knhk.persistence.blob_keeping import BlobKeeper, is_gone
from knhk.ports.environment import Clock
from knhk.ports.journal import Journal
from knhk.protection.blob_archive import BlobArchive

_PAUSE_S: Final = 3600.0
_RETRY_S: Final = 15.0
_SETTLE_S: Final = 60.0
_MARKS_A_TURN: Final = 50
_TURN_S: Final = 0.05


class BlobCare:
    """Implements ports.duty.Duty."""

    room = "persistence"

    def __init__(
        self,
        area: BlobArea,
        keeper: BlobKeeper,
        journal: Journal,
        clock: Clock,
        *,
        grace_ns: int,
        archive: BlobArchive | None,
        bytes_per_s: int,
    ) -> None:
        """With an `archive`, the blobs of runs that were pruned are there before they go."""
        self._archive, self._bytes_per_s = archive, bytes_per_s
        self._area, self._keeper, self._journal, self._clock = area, keeper, journal, clock
        self._grace_ns = grace_ns
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._failure = ""
        self._looked_at_ns = 0
        self._last: dict[str, Any] = {}
        self._log = get("knhk.protection")

    async def start(self) -> None:
        """Finish what a crash interrupted, and begin."""
        await self._keeper.settle()
        self._task = asyncio.create_task(self._work(), name="blobs")

    async def stop(self) -> None:
        """End between two blobs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def health(self) -> str:
        """Whether unused blobs go."""
        return f"{WARNING}unused blobs stay: {self._failure}" if self._failure else "ok"

    async def run(self) -> dict[str, Any]:
        """One pass over everything, now; what it did. Raises what keeps it from that."""
        async with self._turn:
            if not self._area.is_marked:
                raise StorageUnavailable(f"it is not known which blobs in {self._area.path} are used")
            began_ns = self._clock.now_ns()
            if began_ns - self._looked_at_ns >= DAY:
                await self._drop_stray_marks(began_ns - self._grace_ns)
                self._looked_at_ns = began_ns
            removed = freed = 0
            for names in await asyncio.to_thread(self._folders):
                for name in names:
                    size = await asyncio.to_thread(self._area.collect, name, began_ns - self._grace_ns)
                    removed, freed = removed + (size > 0), freed + size
                    await self._renew(name)
                await self._clock.sleep(0)
            self._last = {"at": rfc3339(began_ns), "removed": removed, "freed_bytes": freed}
            return self._last

    async def _renew(self, name: str) -> None:
        try:
            read = await asyncio.to_thread(self._area.renew, name)
        except Corrupt as error:
            self._log.error("a blob cannot be encrypted anew", reason=error.message)
            return
        await self._clock.sleep(read / self._bytes_per_s)

    def _folders(self) -> list[list[str]]:
        by_folder: dict[str, list[str]] = {}
        for name in self._area.names():
            by_folder.setdefault(name[:2], []).append(name)
        return list(by_folder.values())

    async def _drop_stray_marks(self, before_ns: int) -> None:
        """Drop the marks of runs that have no payloads, unless they may be about to have some."""
        for looked, (run, names) in enumerate((await asyncio.to_thread(self._marks, before_ns)).items()):
            if await is_gone(self._journal, run):
                if self._archive is not None and not await is_gone(self._journal, run, pruned=False):
                    await asyncio.to_thread(self._archive.keep, names)  # versions before this one left them out
                for name in names:
                    await asyncio.to_thread(self._area.forget, name, run)
            if looked % _MARKS_A_TURN == _MARKS_A_TURN - 1:
                await self._clock.sleep(_TURN_S)

    def _marks(self, before_ns: int) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name in self._area.names():
            for run in self._area.users(name):
                if _age_ns(self._area.mark_path(name, run)) < before_ns:
                    found.setdefault(run, []).append(name)
        return found

    async def _work(self) -> None:
        waited_s = _PAUSE_S  # the first pass comes soon
        while True:
            try:
                await self._keeper.settle()
                if waited_s >= _PAUSE_S:
                    await self.run()
                    waited_s = 0.0
                pause_s, self._failure = _SETTLE_S, ""
            except (KnhkError, OSError) as error:
                if str(error) != self._failure:
                    self._log.error("unused blobs stay", reason=str(error))
                self._failure, pause_s = str(error), _RETRY_S
            await self._clock.sleep(pause_s)
            waited_s += pause_s


def _age_ns(mark: Path) -> int:
    try:
        return mark.stat().st_mtime_ns
    except FileNotFoundError:
        return 1 << 63
