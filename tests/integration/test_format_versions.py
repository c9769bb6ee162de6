"""Formats on disk: an older one goes on, a newer one is refused and says who can read it, and none is half migrated."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from rocksdict import Options, WriteBatch

from knhk import __version__
from knhk.domain.errors import JournalCorrupt, StorageUnavailable, Unsupported
from knhk.persistence import format_version
from knhk.persistence.format_version import stored_format
from knhk.persistence.journal_check import verify_all
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_database import Counters, Database
from knhk.persistence.rocksdb_keys import FIRST_FAMILIES, FORMAT_KEY, FORMAT_VERSION, WRITER_KEY
from knhk.persistence.rocksdb_options import StoreOptions
from tests.unit.cli.journal import ERASED, FIRST, RUNS, SECOND, trust, write_journal

OPTIONS = StoreOptions(write_buffer_size_bytes=1 << 20, block_cache_size_bytes=1 << 20, max_background_jobs=2)
FIXTURE = Path(__file__).parents[1] / "fixtures" / "format-1.tar.gz"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A data directory that the last store of format 1 wrote."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "data"


async def check_content(store: RocksDbStore) -> None:
    """What make_format_1.py wrote, and nothing else."""
    report = await verify_all(store, store.scanner(), trust(), lambda *_: None)
    # The second partition's block has no receipts and no real signature: the fixture's builder signs nothing.
    assert (report.total_count, report.missing, report.chain_breaks, report.corrupt) == (19, 0, 0, 0), report.problems
    assert {run for run, _ in store.scanner().scan_receipts()} == set(RUNS)
    assert await store.payload(FIRST, 0, 0) is not None
    assert await store.payload(ERASED, 0, 0) is None
    assert await store.claim(bytes(range(32))) is not None
    assert await store.live(0) == [SECOND]
    assert await store.timers(0, 1 << 62, 10) == [(1_800_000_000_000_000_000, FIRST)]
    assert await store.row("runs", b"large") == b"a row of a run " * 100
    assert await store.cursor("runs") == 4


async def test_the_first_format_is_migrated_and_nothing_is_lost(first: Path) -> None:
    store = RocksDbStore.open(first, OPTIONS)
    assert stored_format(store._database) == FORMAT_VERSION
    assert store._database.get("meta", WRITER_KEY) == __version__.encode()
    await check_content(store)
    await store.close()
    again = RocksDbStore.open(first, OPTIONS)
    await check_content(again)
    await again.close()


async def test_reading_alone_leaves_an_older_format_as_it_is(first: Path) -> None:
    for _ in range(2):
        store = RocksDbStore.open(first, OPTIONS, read_only=True)
        assert stored_format(store._database) == 1
        await check_content(store)
        await store.close()


async def test_a_newer_format_is_refused_unchanged_and_says_which_version_reads_it(tmp_path: Path) -> None:
    store = RocksDbStore.open(tmp_path / "store", OPTIONS)
    await write_journal(store)
    set_format(store._database, FORMAT_VERSION + 5, "9.8.7")
    await store.close()
    add_family(tmp_path / "store", "of_a_newer_format")
    before = sorted(path.name for path in (tmp_path / "store").iterdir())
    for read_only in (False, True):
        with pytest.raises(
            Unsupported, match=rf"has format {FORMAT_VERSION + 5}, which KNHK 9\.8\.7 or newer reads"
        ) as refused:
            RocksDbStore.open(tmp_path / "store", OPTIONS, read_only=read_only)
        assert "9.8.7" in refused.value.advice
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == before


async def test_a_store_that_has_receipts_and_no_format_is_refused(tmp_path: Path) -> None:
    store = RocksDbStore.open(tmp_path / "store", OPTIONS)
    await write_journal(store)
    batch = WriteBatch(raw_mode=True)
    batch.delete(FORMAT_KEY, store._database.handles["meta"])
    store._database.write(batch)
    await store.close()
    with pytest.raises(JournalCorrupt, match="which version of the format"):
        RocksDbStore.open(tmp_path / "store", OPTIONS)


async def test_a_family_that_a_later_format_added_is_empty_until_it_is_made(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("knhk.persistence.rocksdb_database.FAMILIES", (*FIRST_FAMILIES, "later"))
    reading = RocksDbStore.open(first, OPTIONS, read_only=True)
    assert reading._database.get("later", b"key") is None
    assert list(reading._database.scan("later", b"", None)) == []
    await reading.close()
    writing = RocksDbStore.open(first, OPTIONS)
    batch = WriteBatch(raw_mode=True)
    batch.put(b"key", b"value", writing._database.handles["later"])
    writing._database.write(batch)
    assert writing._database.get("later", b"key") == b"value"
    await check_content(writing)
    await writing.close()


async def test_a_step_that_fails_leaves_the_old_format(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_database: Database, batch: WriteBatch) -> None:
        batch.put(b"half", b"done", _database.handles["meta"])
        raise StorageUnavailable("broken on the way")

    monkeypatch.setattr(format_version, "MIGRATIONS", {1: fails})
    with pytest.raises(StorageUnavailable, match="on the way"):
        RocksDbStore.open(first, OPTIONS)
    monkeypatch.undo()
    reading = RocksDbStore.open(first, OPTIONS, read_only=True)
    assert (stored_format(reading._database), reading._database.get("meta", b"half")) == (1, None)
    await reading.close()
    store = RocksDbStore.open(first, OPTIONS)
    await check_content(store)
    await store.close()


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_process_killed_while_it_migrates_leaves_a_whole_format(
    first: Path, tmp_path: Path, moment: str
) -> None:
    program = f"""
import os, signal
from pathlib import Path
from knhk.persistence import format_version
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_database import Database
write = Database.write
def dies(self, batch):
    if {moment!r} == "after":
        write(self, batch)
    os.kill(os.getpid(), signal.SIGKILL)
Database.write = dies
RocksDbStore.open(Path({str(first)!r}))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], timeout=60, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    store = RocksDbStore.open(copy, OPTIONS)
    assert stored_format(store._database) == FORMAT_VERSION
    await check_content(store)
    await store.close()


def set_format(database: Database, version: int, writer: str) -> None:
    batch = WriteBatch(raw_mode=True)
    batch.put(FORMAT_KEY, version.to_bytes(2, "big"), database.handles["meta"])
    batch.put(WRITER_KEY, writer.encode(), database.handles["meta"])
    database.write(batch)
    database.sync()


def add_family(path: Path, name: str) -> None:
    database = Database(path, OPTIONS, Counters(), create=False, read_only=False)
    assert database._rdict is not None
    database._rdict.create_column_family(name, Options(raw_mode=True)).close()
    database.close()
