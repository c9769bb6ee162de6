"""Re-encryption in the background: after encryption was turned on, and after the data keys were rotated."""

import asyncio
from typing import Any, Final

from knhk.domain.errors import KnhkError
from knhk.domain.times import rfc3339
from knhk.observability.logs import get
from knhk.observability.readings import WARNING
from knhk.persistence.rewriting import (
    FAMILIES,
    Page,
    Progress,
    estimated_rows,
    keep_progress,
    progress_of,
    rewrite_page,
)
from knhk.persistence.rows import Changes, Rows, RowStore
from knhk.ports.environment import Clock

_PAGE_BYTES: Final = 128 << 10
_RETRY_S: Final = 5.0
_OK: Final = "ok"


class Reencryption:
    """Implements ports.duty.Duty: brings all rows to the present generation of keys, at most `bytes_per_s`."""

    room = "persistence"

    def __init__(self, store: RowStore, clock: Clock, *, bytes_per_s: int) -> None:
        self._store, self._clock, self._bytes_per_s = store, clock, bytes_per_s
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure = ""
        self._progress = Progress()
        self._log = get("knhk.protection")

    async def start(self) -> None:
        """Go on where the last process stopped."""
        if self._store.cipher.encrypting:
            self._progress = await self._store.look(progress_of)
            self._news.set()
            self._task = asyncio.create_task(self._work(), name="reencryption")

    async def stop(self) -> None:
        """End between two pages."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def health(self) -> str:
        """Whether it goes on."""
        if self._failure:
            return f"{WARNING}re-encryption waits: {self._failure}"
        damaged = self._progress.damaged if self._store.cipher.encrypting else 0
        if damaged:
            return f"{WARNING}re-encryption found {damaged} row(s) that do not decrypt; see `knhk verify --full`"
        return _OK

    def wake(self) -> None:
        """The generation has changed."""
        self._news.set()

    @property
    def complete(self) -> bool:
        """Whether nothing is left in clear or under an older generation."""
        keys, progress = self._store.cipher.keys, self._progress
        return keys is not None and progress.generation == keys.active and progress.ended_at_ns > 0

    async def status(self) -> dict[str, Any]:
        """How far it is, as JSON-like data."""
        progress, rows = await self._store.look(lambda stored: (progress_of(stored), estimated_rows(stored)))
        done = self.complete
        return {
            "state": "off" if not self._store.cipher.encrypting else "complete" if done else "under way",
            "generation": progress.generation,
            "rows_looked_at": progress.looked_at,
            "rows_rewritten": progress.rewritten,
            "rows_damaged": progress.damaged,
            "percent": 100.0 if done else round(min(99.9, 100 * progress.looked_at / max(1, rows)), 1),
            "still_in_clear_or_older": [] if done else list(FAMILIES[FAMILIES.index(progress.family) :]),
            "started_at": rfc3339(progress.started_at_ns) if progress.started_at_ns else None,
            "ended_at": rfc3339(progress.ended_at_ns) if progress.ended_at_ns else None,
        }

    async def _work(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while not self.complete:
                try:
                    await self._one_page()
                    self._failure = ""
                except (KnhkError, OSError) as error:
                    self._failure = str(error)
                    await self._clock.sleep(_RETRY_S)

    async def _one_page(self) -> None:
        done = Page(0, Progress())

        def build(rows: Rows, changes: Changes) -> None:
            nonlocal done
            done = rewrite_page(rows, self._store.cipher, changes, _PAGE_BYTES, self._clock.now_ns())
            if done.progress.ended_at_ns:  # not complete before the old rows have left the disk
                keep_progress(changes, self._reopened(done.progress))

        await self._store.change(build)
        self._progress = self._reopened(done.progress)
        if done.progress.ended_at_ns:
            await self._store.compact(FAMILIES)
            await self._store.change(lambda _, changes: keep_progress(changes, done.progress), durable=True)
            self._progress = done.progress
            self._log.info("re-encrypted", generation=done.progress.generation, rows=done.progress.rewritten)
        await self._clock.sleep(done.read_bytes / self._bytes_per_s)

    @staticmethod
    def _reopened(progress: Progress) -> Progress:
        return Progress(
            progress.generation,
            progress.family,
            progress.after,
            progress.looked_at,
            progress.rewritten,
            progress.damaged,
            progress.started_at_ns,
        )
