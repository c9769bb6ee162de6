"""A killed process, a full disk, a log that cannot be synced: what was acknowledged stays, nothing else is shown."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from knhk.domain.errors import DiskFull, Fenced, StorageUnavailable
from knhk.domain.receipt import verify_chain
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.ports.append import Payload
from knhk.ports.journal import Claim
from tests.builders import CommitBuilder, workflow_id

OPTIONS = StoreOptions(write_buffer_size_bytes=1 << 20, block_cache_size_bytes=1 << 20, max_background_jobs=2)
RUN = workflow_id(1)

WRITER = """
import asyncio, os, sys
from pathlib import Path
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.ports.append import Payload
from tests.builders import CommitBuilder, workflow_id

async def main():
    store = RocksDbStore.open(Path(sys.argv[1]), StoreOptions(write_buffer_size_bytes=1 << 18, max_background_jobs=2))
    builder = CommitBuilder(await store.acquire(0))
    base = (builder.height + 1) * 10
    while True:
        runs = [workflow_id(base + builder.height * 3 + number) for number in range(3)]
        slices = [builder.slice(run, 2, [Payload(0, 0, os.urandom(200))]) for run in runs]
        await store.append(builder.commit(slices))
        os.write(1, b"%d\\n" % builder.height)

asyncio.run(main())
"""


async def test_what_a_killed_process_acknowledged_is_there(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    acknowledged = -1
    for pause_s in (0.3, 0.15, 0.4):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "store")]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        await asyncio.sleep(pause_s)
        writer.send_signal(signal.SIGKILL)
        lines = (first + writer.stdout.read()).split(b"\n")
        writer.stdout.close()
        writer.wait()
        heights = [int(line) for line in lines[:-1]]
        assert heights == list(range(heights[0], heights[-1] + 1))
        assert heights[0] > acknowledged
        acknowledged = heights[-1]
        store = RocksDbStore.open(tmp_path / "store", OPTIONS)
        head = await store.head(0)
        assert head is not None
        assert acknowledged <= head.block().height <= acknowledged + 1
        signed = await store.blocks(0, 0, acknowledged + 1)
        assert [one.block().height for one in signed] == list(range(acknowledged + 1))
        for one in signed:
            assert len(await store.block_receipts(one)) == one.block().count == 6
        assert not [fault for run, found in store.scanner().scan_receipts() for fault in verify_chain(run, found)]
        await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_full_disk_is_said_and_survived(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(10 << 20))
    store = RocksDbStore.open(small_disk / "store", OPTIONS)
    builder = CommitBuilder(await store.acquire(0))
    acknowledged = 0
    failed = None
    while failed is None:
        commit = builder.commit([builder.slice(RUN, 1, [Payload(acknowledged, 1, os.urandom(100_000))])])
        try:
            await store.append(commit)
            acknowledged += 1
        except DiskFull:
            failed = commit
    assert acknowledged > 5
    assert await store.receipts(RUN) == builder.chains[RUN][:acknowledged]
    with pytest.raises(StorageUnavailable):
        await store.append(failed)
    with contextlib.suppress(DiskFull, StorageUnavailable):
        await store.reopen()  # whether it can depends on what RocksDB freed
    assert (await store.receipts(RUN))[:acknowledged] == builder.chains[RUN][:acknowledged]
    ballast.unlink()
    await store.reopen()
    head = await store.head(0)
    assert head is not None
    if head.block().height < failed.block.height:
        await store.append(failed)
    await store.append(builder.commit([builder.slice(RUN, 1)]))
    await store.close()
    store = RocksDbStore.open(small_disk / "store", OPTIONS)
    assert await store.receipts(RUN) == builder.chains[RUN]
    for seq in range(acknowledged):
        raw = await store.payload(RUN, seq, 1)
        assert raw is not None
        assert len(raw) == 100_000
    await store.close()


async def test_a_failed_checkpoint_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    store = RocksDbStore.open(tmp_path / "store", OPTIONS)  # another file system, so that files are copied
    builder = CommitBuilder(await store.acquire(0))
    for seq in range(30):
        await store.append(builder.commit([builder.slice(RUN, 1, [Payload(seq, 1, os.urandom(1 << 20))])]))
    with pytest.raises(DiskFull):
        await store.checkpoint(small_disk / "copy")
    assert list(small_disk.iterdir()) == []
    await store.append(builder.commit([builder.slice(RUN, 1)]))
    assert await store.checkpoint(tmp_path / "copy") == 30
    await store.close()


async def test_nobody_sees_a_commit_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RocksDbStore.open(tmp_path / "store", OPTIONS)
    builder = CommitBuilder(await store.acquire(0))
    await store.append(builder.commit([builder.slice(RUN, 2)]))
    head = await store.head(0)
    key, released, sync = sha256(b"k").digest(), threading.Event(), store._database.sync

    def wait_and_sync() -> None:
        released.wait(10)
        sync()

    assert store._writer is not None
    monkeypatch.setattr(store._writer, "_sync", wait_and_sync)
    second = builder.commit([builder.slice(RUN, 1, [Payload(2, 0, b"x")])], claims=[Claim(key, RUN, bytes(32))])
    third = builder.commit([builder.slice(RUN, 1), builder.slice(workflow_id(2), 1)])
    appends = [asyncio.ensure_future(store.append(commit)) for commit in (second, third)]
    await asyncio.sleep(0.02)
    with pytest.raises(Fenced):
        await store.append(third)
    assert await store.head(0) == head
    assert len(await store.blocks(0, 0, 10)) == 1
    assert await store.receipts(RUN) == builder.chains[RUN][:2]
    assert await store.receipts(workflow_id(2)) == []
    assert await store.block_receipts(second.signed) == []
    assert await store.payload(RUN, 2, 0) is None
    assert await store.claim(key) is None
    released.set()
    await asyncio.gather(*appends)
    assert await store.head(0) == third.signed
    assert await store.receipts(RUN) == builder.chains[RUN]
    assert await store.payload(RUN, 2, 0) == b"x"
    assert await store.claim(key) is not None
    await store.close()


async def test_a_failed_sync_is_a_failed_append_until_the_store_is_reopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RocksDbStore.open(tmp_path / "store", OPTIONS)
    builder = CommitBuilder(await store.acquire(0))

    def fail() -> None:
        raise StorageUnavailable("the disk does not answer")

    assert store._writer is not None
    monkeypatch.setattr(store._writer, "_sync", fail)
    commit = builder.commit([builder.slice(RUN, 1)])
    with pytest.raises(StorageUnavailable, match="does not answer"):
        await store.append(commit)
    assert await store.receipts(RUN) == []
    with pytest.raises(StorageUnavailable, match="reopened first"):
        await store.append(commit)
    await store.reopen()
    assert await store.head(0) == commit.signed  # it was in the log after all
    await store.append(builder.commit([builder.slice(RUN, 1)]))
    assert await store.receipts(RUN) == builder.chains[RUN]
    assert store.statistics()["reopens_total"] == 1
    await store.close()


async def test_an_append_that_is_cancelled_still_happens(tmp_path: Path) -> None:
    store = RocksDbStore.open(tmp_path / "store", OPTIONS)
    builder = CommitBuilder(await store.acquire(0))
    task = asyncio.ensure_future(store.append(builder.commit([builder.slice(RUN, 1)])))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await store.append(builder.commit([builder.slice(RUN, 1)]))
    assert await store.receipts(RUN) == builder.chains[RUN]
    await store.close()


async def test_appends_wait_out_a_stall(tmp_path: Path) -> None:
    tiny = StoreOptions(write_buffer_size_bytes=1 << 16, max_write_buffer_number=2, max_background_jobs=1)
    store = RocksDbStore.open(tmp_path / "store", tiny)
    builder = CommitBuilder(await store.acquire(0))
    rows: dict[bytes, bytes | None] = {b"%d" % number: os.urandom(2000) for number in range(60)}
    for number in range(150):
        await store.store("fold", rows, number)
        if number % 10 == 0:
            await store.append(builder.commit([builder.slice(RUN, 1)]))
    figures = store.statistics()
    assert figures["stalls_total"] > 0
    assert figures["errors_total"] == 0
    assert len(await store.rows("fold", b"")) == 60
    assert await store.receipts(RUN) == builder.chains[RUN]
    await store.close()
