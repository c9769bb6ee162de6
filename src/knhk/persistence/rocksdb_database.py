"""One open RocksDB database: its column families, and the one place where its errors are translated and its work timed.

Nothing here knows what the rows mean. Reads and iterators may be used from any thread; `close` must be last.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

import msgspec
from rocksdict import AccessType, Checkpoint, ColumnFamily, Rdict, RdictIter, WriteBatch, WriteOptions

from knhk.domain.errors import StorageUnavailable
from knhk.domain.histogram import SHORT_S, Histogram
from knhk.persistence.rocksdb_errors import Stalled, translated
from knhk.persistence.rocksdb_figures import tickers
from knhk.persistence.rocksdb_keys import FAMILIES
from knhk.persistence.rocksdb_options import StoreOptions, block_cache, rocksdb_options

SUMMED_PROPERTIES: Final = {
    "memtable_bytes": "rocksdb.cur-size-all-mem-tables",
    "sst_bytes": "rocksdb.live-sst-files-size",
    "compaction_pending_bytes": "rocksdb.estimate-pending-compaction-bytes",
    "immutable_memtables": "rocksdb.num-immutable-mem-table",
}
SHARED_PROPERTIES: Final = {
    "block_cache_bytes": "rocksdb.block-cache-usage",
    "block_cache_pinned_bytes": "rocksdb.block-cache-pinned-usage",
    "compactions_running": "rocksdb.num-running-compactions",
    "flushes_running": "rocksdb.num-running-flushes",
    "background_errors": "rocksdb.background-errors",
    "write_stopped": "rocksdb.is-write-stopped",
    "delayed_write_rate": "rocksdb.actual-delayed-write-rate",
}


class Counters(msgspec.Struct):
    """What was done since the store was opened. They outlive a reopening."""

    commits_total: int = 0
    writes_total: int = 0
    rows_written_total: int = 0
    bytes_written_total: int = 0
    write_seconds_total: float = 0.0
    fsync_seconds: Histogram = msgspec.field(default_factory=lambda: Histogram(SHORT_S))
    fsync_seconds_max: float = 0.0
    stalls_total: int = 0
    errors_total: int = 0
    reopens_total: int = 0
    witness_errors_total: int = 0
    last_batch_rows: int = 0
    last_batch_bytes: int = 0

    def figures(self) -> dict[str, float]:
        """The plain numbers by name."""
        return {name: float(value) for name, value in msgspec.structs.asdict(self).items() if name != "fsync_seconds"}


class Database:
    """RocksDB by column family name. Every method raises the errors of rocksdb_errors.translated."""

    def __init__(self, path: Path, options: StoreOptions, counters: Counters, *, create: bool, read_only: bool) -> None:
        self._path = path
        self._counters = counters
        # Those of a newer format too, so that it can be named. An older one lacks some: reading cannot make them.
        stored = set() if create else stored_families(path) - {"default"}
        names = sorted(stored if read_only else stored | set(FAMILIES))
        self._log_directory = tempfile.TemporaryDirectory(prefix="knhk-log-") if read_only else None
        log_directory = None if self._log_directory is None else self._log_directory.name
        self._write_options = WriteOptions()
        self._write_options.sync = False
        self._write_options.no_slowdown = True
        cache = block_cache(options)
        self._options = rocksdb_options(options, cache, create=create, log_directory=log_directory)
        access = AccessType.read_only(False) if read_only else AccessType.read_write()
        try:
            self._rdict: Rdict | None = Rdict(
                str(path),
                self._options,
                column_families={
                    name: rocksdb_options(options, cache, create=create, log_directory=log_directory) for name in names
                },
                access_type=access,
            )
        except Exception as error:
            self._drop_log()
            raise translated(error, path, "opening", opening=True) from error
        self._families: dict[str, Rdict] = {name: self._rdict.get_column_family(name) for name in names}
        self.handles: dict[str, ColumnFamily] = {name: self._rdict.get_column_family_handle(name) for name in names}

    def _open(self) -> Rdict:
        if self._rdict is None:
            raise StorageUnavailable(f"{self._path}: the store is closed")
        return self._rdict

    def get(self, family: str, key: bytes) -> bytes | None:
        """One value."""
        self._open()
        if family not in self._families:
            return None  # opened for reading only, and of an older format that had no such family
        try:
            value: bytes | None = self._families[family].get(key)
        except Exception as error:
            raise self._failed(error, f"reading {family}") from error
        return value

    def get_many(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of these keys, in their order."""
        return [self.get(family, key) for key in keys]

    def _iterator(self, family: str) -> RdictIter | None:
        """An iterator; None where an older format, opened for reading only, has no such family."""
        self._open()
        return self._families[family].iter() if family in self._families else None

    def scan(self, family: str, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """The rows with `start <= key < end`, ascending; to the end of the column family if `end` is None."""
        try:
            at = self._iterator(family)
            if at is None:
                return
            at.seek(start)
            while at.valid():
                key = at.key()
                if end is not None and key >= end:
                    return
                yield key, at.value()
                at.next()
            at.status()
        except Exception as error:
            raise self._failed(error, f"scanning {family}") from error

    def scan_back(self, family: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The rows with `start <= key < end`, descending."""
        try:
            at = self._iterator(family)
            if at is None:
                return
            at.seek_for_prev(end)
            if at.valid() and at.key() == end:
                at.prev()
            while at.valid():
                key = at.key()
                if key < start:
                    return
                yield key, at.value()
                at.prev()
            at.status()
        except Exception as error:
            raise self._failed(error, f"scanning {family}") from error

    def write(self, batch: WriteBatch) -> None:
        """Write a batch, which is used up, to the log and to memory, unsynced. Raises Stalled if RocksDB would wait."""
        counters = self._counters
        rows, size = len(batch), batch.size_in_bytes()
        start = perf_counter()
        try:
            self._open().write(batch, self._write_options)
        except Exception as error:
            raise self._failed(error, "writing") from error
        counters.write_seconds_total += perf_counter() - start
        counters.writes_total += 1
        counters.rows_written_total += rows
        counters.bytes_written_total += size
        counters.last_batch_rows, counters.last_batch_bytes = rows, size

    def sync(self) -> None:
        """Make everything that was written durable (fdatasync of the log). Releases the interpreter's lock."""
        counters = self._counters
        start = perf_counter()
        try:
            self._open().flush_wal(True)
        except Exception as error:
            raise self._failed(error, "syncing the log") from error
        took = perf_counter() - start
        counters.fsync_seconds.add(took)
        counters.fsync_seconds_max = max(counters.fsync_seconds_max, took)

    def flush(self) -> None:
        """Write the memtables to files. Releases the interpreter's lock."""
        self._open()
        try:
            for family in self._families.values():
                family.flush()
        except Exception as error:
            raise self._failed(error, "flushing") from error

    def compact(self, families: Sequence[str]) -> None:
        """Flush, and write the files of these column families anew. Releases the interpreter's lock."""
        self.flush()
        try:
            for name in families:
                self._families[name].compact_range(None, None)
        except Exception as error:
            raise self._failed(error, "compacting") from error

    def estimated_rows(self, family: str) -> int:
        """About how many rows a column family has."""
        self._open()
        return self._families[family].property_int_value("rocksdb.estimate-num-keys") or 0

    def checkpoint(self, target: Path) -> None:
        """Hard-link a copy into `target`, a new directory. Holds the interpreter's lock: `flush` shortly before."""
        database = self._open()
        try:
            Checkpoint(database).create_checkpoint(str(target))
        except Exception as error:
            raise self._failed(error, f"writing the checkpoint {target}") from error

    def properties(self) -> dict[str, float]:
        """RocksDB's own figures, by name."""
        database = self._open()
        figures = {
            name: float(sum(family.property_int_value(key) or 0 for family in self._families.values()))
            for name, key in SUMMED_PROPERTIES.items()
        }
        for name, key in SHARED_PROPERTIES.items():
            figures[name] = float(database.property_int_value(key) or 0)
        return figures | tickers(self._options.get_statistics() or "")

    def close(self) -> None:
        """Release the directory; what was written is in the log. Closing twice is fine."""
        database, self._rdict = self._rdict, None
        if database is None:
            return
        if self._log_directory is None:
            with contextlib.suppress(Exception):  # closing flushes too, but holds the interpreter's lock meanwhile
                for family in self._families.values():
                    family.flush()
        # RocksDB keeps its lock on the directory for as long as one of these objects lives.
        self.handles.clear()
        for family in self._families.values():
            with contextlib.suppress(Exception):
                family.close()
        self._families.clear()
        with contextlib.suppress(Exception):  # after a failed write it fails too; the log is read at the next opening
            database.close()
        self._drop_log()

    def _drop_log(self) -> None:
        if self._log_directory is not None:
            self._log_directory.cleanup()

    def _failed(self, error: Exception, doing: str) -> Exception:
        mapped = translated(error, self._path, doing)
        if isinstance(mapped, Stalled):
            self._counters.stalls_total += 1
        else:
            self._counters.errors_total += 1
        return mapped


def stored_families(path: Path) -> set[str]:
    """The column families that the directory's database has."""
    try:
        return set(Rdict.list_cf(str(path)))
    except Exception as error:
        raise translated(error, path, "listing the column families", opening=True) from error


def log_bytes(path: Path) -> int:
    """Size of RocksDB's write-ahead logs in the directory."""
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith(".log"):
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat().st_size
    return total
