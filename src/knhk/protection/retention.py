"""Retention in the background: whole runs that ended long enough ago are archived or dropped, page by page."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import msgspec

from knhk.domain.errors import KnhkError
from knhk.domain.times import rfc3339
from knhk.domain.units import DAY
from knhk.observability.logs import get
from knhk.observability.readings import WARNING
from knhk.persistence.prune_records import PRUNED, PruneRecord, SignedRecord, decode_record, record_key
from knhk.persistence.rocksdb_keys import BLOCK, DESCRIPTOR, RETENTION_KEY, after
from knhk.persistence.rows import Changes, Row, Rows, RowStore
from knhk.ports.environment import Clock, Signer
from knhk.protection.archive import SUFFIX, Archive, Place, digest_of_rows
from knhk.protection.blob_archive import BlobArchive
from knhk.protection.pruning import (
    Found,
    Prunable,
    descriptors_in_use,
    digest_of,
    find,
    prune,
    still_prunable,
    stored_descriptors,
)
from knhk.protection.retention_clock import RetentionClock

_PAUSE_S: Final = 60.0
_RETRY_S: Final = 15.0
_PAGE_ROWS: Final = 100
_PAGE_BYTES: Final = 256 << 10
_SWEEP_ROWS: Final = 500
_ROW_BYTES: Final = 500
_SHOWN: Final = 20
_FAMILIES: Final = ("receipts", "payloads", "runs", "index")


class RetentionSettings(msgspec.Struct, frozen=True):
    """`archive` is what operators call the place; empty: runs are dropped."""

    days: int
    bytes_per_s: int
    node_id: str
    partition: int
    archive: str = ""


class _Changed(Exception):
    """A run was touched between being found and being pruned; it is looked at again in the next pass."""


class Retention:
    """Implements ports.duty.Duty.

    `is_at_rest` says whether the engine does nothing with a run; `bar` keeps it from runs that are.
    `last_used` is when the journal grew for the last time before this process, for a store that retention never ran on.
    """

    room = "persistence"

    def __init__(
        self,
        settings: RetentionSettings,
        store: RowStore,
        signer: Signer,
        clock: Clock,
        *,
        is_at_rest: Callable[[int], bool],
        bar: Callable[[Sequence[int]], AbstractAsyncContextManager[None]],
        last_used: Callable[[], int],
        place: Callable[[], Place] | None = None,
        blobs: BlobArchive | None = None,
    ) -> None:
        self._settings, self._store, self._signer, self._clock = settings, store, signer, clock
        self._is_at_rest, self._bar, self._last_used, self._place = is_at_rest, bar, last_used, place
        self._blobs = blobs
        self._time = RetentionClock.start(clock.now_ns(), clock.now_ns())
        self._turn = asyncio.Lock()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure = ""
        self._unsound: list[str] = []
        self._last: dict[str, Any] = {}
        self._log = get("knhk.protection")

    async def start(self) -> None:
        """Begin with a pass."""
        await self.believe()
        self._task = asyncio.create_task(self._work(), name="retention")

    async def stop(self) -> None:
        """End between two pages."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def health(self) -> str:
        """Whether what is old goes."""
        if self._failure:
            return f"{WARNING}retention waits: {self._failure}"
        if self._time.is_held:
            return f"{WARNING}retention waits: {self._time.sentence()}"
        if self._unsound:
            return f"{WARNING}retention keeps {len(self._unsound)} workflow(s) that do not verify: {self._unsound[0]}"
        return "ok"

    async def believe(self) -> None:
        """Find out what time it is."""
        raw = await self._store.look(lambda rows: rows.get("meta", RETENTION_KEY))
        last_ns = self._last_used() if raw is None else int.from_bytes(raw)
        self._time = RetentionClock.start(self._clock.now_ns(), last_ns)

    def confirm(self) -> None:
        """The clock is right."""
        self._time.confirm()
        self._news.set()

    async def status(self) -> dict[str, Any]:
        """What was pruned, and what is to come, as JSON-like data."""
        records = await self._store.look(self._records)
        return {
            "retention_days": self._settings.days,
            "archive": self._settings.archive or None,
            "prunes_before": rfc3339(self._cutoff_ns()),
            "clock": self._time.sentence() if self._time.is_held else "ok",
            "workflows_pruned": sum(record.workflows for record in records),
            "receipts_pruned": sum(record.receipts for record in records),
            "last_pass": self._last or None,
            "records": [record.shown() for record in records[-_SHOWN:]],
        }

    async def run(self) -> dict[str, Any]:
        """One pass over everything, now; what it did. Raises what keeps it from that."""
        async with self._turn:
            cutoff_ns, began_ns = self._cutoff_ns(), self._clock.now_ns()
            before = self._file_bytes()
            pruned, gone, unsound, descriptors = 0, 0, list[str](), set[bytes]()
            place: bytes | None = b""
            while place is not None:
                look = self._finder(place, cutoff_ns)
                found = await self._store.look(look)
                unsound += found.unsound
                for run in found.runs:
                    descriptors |= run.descriptors
                count, size = await self._prune(found.runs, cutoff_ns)
                pruned, gone, place = pruned + count, gone + size, found.after
                await self._clock.sleep(found.read_bytes / self._settings.bytes_per_s)
            self._unsound = unsound
            swept = 0
            if pruned:
                swept = await self._sweep(descriptors)
                await self._store.compact(_FAMILIES)
            now_ns = self._time.now_ns(self._clock.now_ns())
            raw = now_ns.to_bytes(8)
            await self._store.change(lambda _, changes: changes.put("meta", RETENTION_KEY, raw), durable=pruned > 0)
            self._last = {
                "at": rfc3339(began_ns),
                "workflows": pruned,
                "descriptors": swept,
                "row_bytes_gone": gone,
                "file_bytes_before": before,
                "file_bytes_after": self._file_bytes(),
                "unsound": unsound[:_SHOWN],
            }
            if pruned:
                self._log.info("pruned", **{name: value for name, value in self._last.items() if name != "unsound"})
            return self._last

    def _file_bytes(self) -> int:
        """What the rows take, in files and in memory that will be written to files."""
        figures = self._store.statistics()
        return int(figures.get("sst_bytes", 0.0) + figures.get("memtable_bytes", 0.0))

    def _cutoff_ns(self) -> int:
        return self._time.now_ns(self._clock.now_ns()) - self._settings.days * DAY

    def _finder(self, place: bytes, cutoff_ns: int) -> Callable[[Rows], Found]:
        cipher, partition = self._store.cipher, self._settings.partition
        return lambda rows: find(rows, cipher, partition, place, cutoff_ns, _PAGE_ROWS, _PAGE_BYTES)

    async def _prune(self, found: list[Prunable], cutoff_ns: int) -> tuple[int, int]:
        """Archive and prune a page; how many runs, and the bytes of their rows that went."""
        resting = [run for run in found if self._is_at_rest(run.workflow_id)]
        runs = await self._store.look(lambda rows: [run for run in resting if still_prunable(rows, run)])
        if not runs:
            return 0, 0
        records = await self._store.look(self._records)
        number = records[-1].number + 1 if records else 1
        rows = await self._rows(runs) if self._place is not None else []
        name = f"{self._settings.partition:04d}-{number:010d}{SUFFIX}" if rows else ""
        record = PruneRecord(
            self._settings.partition,
            number,
            self._clock.now_ns(),
            cutoff_ns,
            len(runs),
            sum(len(run.receipts) for run in runs),
            digest_of(runs),
            name,
            digest_of_rows(rows) if rows else b"",
            self._settings.node_id,
            self._signer.public_key.key_id,
        )
        signed = SignedRecord.by(record, self._signer)
        if rows:
            archive = Archive(signed, await self._store.keys(), rows)
            if self._blobs is not None:
                kept = await asyncio.to_thread(self._blobs.keep_those_of, [run.workflow_id for run in runs])
                await self._clock.sleep(kept / self._settings.bytes_per_s)
            await asyncio.to_thread(self._keep, name, archive)
        gone = 0

        def build(rows: Rows, changes: Changes) -> None:
            nonlocal gone
            if not all(still_prunable(rows, run) for run in runs):
                raise _Changed
            gone = sum(prune(rows, changes, run, number) for run in runs)
            changes.put("meta", record_key(record.partition, number), signed.encode())

        numbers = [run.workflow_id for run in runs]
        if not all(map(self._is_at_rest, numbers)):
            return 0, 0
        async with self._bar(numbers):
            try:
                await self._store.change(build, durable=True)
            except _Changed:
                return 0, 0
        return len(runs), gone

    async def _rows(self, runs: list[Prunable]) -> list[Row]:
        digests = set[bytes]().union(*(run.descriptors for run in runs))
        stored = [row for run in runs for row in run.stored]
        return stored + await self._store.look(lambda rows: list(stored_descriptors(rows, digests)))

    def _keep(self, name: str, archive: Archive) -> None:
        assert self._place is not None
        self._place().put(name, archive.encode())

    async def _sweep(self, digests: set[bytes]) -> int:
        """Delete the descriptors that nothing names any more; how many."""
        recent = self._store.watch_descriptors()
        if recent is None:
            return 0
        try:
            place: bytes | None = b""
            while digests and place is not None:
                used, place = await self._store.look(self._users(place))
                digests = digests - used
                await self._clock.sleep(_SWEEP_ROWS * _ROW_BYTES / self._settings.bytes_per_s)

            def build(_: Rows, changes: Changes) -> None:
                for digest in digests - recent:
                    changes.delete("index", DESCRIPTOR + digest)

            await self._store.change(build)
            return len(digests - recent)
        finally:
            self._store.forget_descriptors()

    def _users(self, place: bytes) -> Callable[[Rows], tuple[set[bytes], bytes | None]]:
        return lambda rows: descriptors_in_use(rows, self._store.cipher, place, _SWEEP_ROWS)

    def _records(self, rows: Rows) -> list[PruneRecord]:
        prefix = PRUNED + BLOCK.pack(self._settings.partition, 0)[:2]
        return [decode_record(row).record() for _, row in rows.scan("meta", prefix, after(prefix))]

    async def _work(self) -> None:
        while True:
            pause = await self._patiently(self.run)
            timer = self._clock.call_later(pause, self._news.set)
            await self._news.wait()
            timer.cancel()
            self._news.clear()

    async def _patiently(self, work: Callable[[], Awaitable[Any]]) -> float:
        try:
            await work()
        except (KnhkError, OSError) as error:
            if str(error) != self._failure:
                self._log.error("retention failed", reason=str(error))
            self._failure = str(error)
            return _RETRY_S
        self._failure = ""
        return _PAUSE_S
