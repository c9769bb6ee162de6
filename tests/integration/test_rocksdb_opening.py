"""Opening: one owner at a time, readers beside it, nothing of others is touched, no version is misread."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from knhk.domain.errors import (
    DataDirectoryInUse,
    InvalidConfiguration,
    JournalCorrupt,
    StorageUnavailable,
)
from knhk.persistence.head_witness import FILE_BYTES, FILE_NAME, HeadWitness
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_options import StoreOptions
from tests.builders import CommitBuilder, workflow_id

OPTIONS = StoreOptions(write_buffer_size_bytes=1 << 20, block_cache_size_bytes=1 << 20, max_background_jobs=2)
RUN = workflow_id(1)


async def filled(path: Path, commits: int = 3) -> CommitBuilder:
    store = RocksDbStore.open(path, OPTIONS)
    builder = CommitBuilder(await store.acquire(0))
    for _ in range(commits):
        await store.append(builder.commit([builder.slice(RUN, 1)]))
    await store.close()
    return builder


async def test_a_second_store_is_refused(tmp_path: Path) -> None:
    store = RocksDbStore.open(tmp_path / "store", OPTIONS)
    with pytest.raises(DataDirectoryInUse, match="store"):
        RocksDbStore.open(tmp_path / "store", OPTIONS)
    await store.close()
    await RocksDbStore.open(tmp_path / "store", OPTIONS).close()


async def test_a_second_process_is_refused_and_may_read(tmp_path: Path) -> None:
    path = tmp_path / "store"
    await filled(path)
    store = RocksDbStore.open(path, OPTIONS)
    builder = CommitBuilder(await store.acquire(0))
    await store.append(builder.commit([builder.slice(workflow_id(2), 4)]))
    program = f"""
from pathlib import Path
from knhk.domain.errors import DataDirectoryInUse
from knhk.persistence.rocksdb import RocksDbStore
try:
    RocksDbStore.open(Path({str(path)!r}))
except DataDirectoryInUse as error:
    print(error.code)
scanner = RocksDbStore.open(Path({str(path)!r}), read_only=True).scanner()
print([len(receipts) for _, receipts in scanner.scan_receipts()])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment()
    )
    assert done.stdout.split("\n")[:2] == ["KNHK-4004", "[3, 4]"], done.stderr
    await store.append(builder.commit([builder.slice(workflow_id(2), 1)]))
    await store.close()


def environment() -> dict[str, str]:
    """So that a child finds the same packages."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


async def test_a_read_only_store_reads_and_refuses_to_write(tmp_path: Path) -> None:
    builder = await filled(tmp_path / "store")
    names = {file.name for file in (tmp_path / "store").iterdir()}
    store = RocksDbStore.open(tmp_path / "store", OPTIONS, read_only=True)
    assert await store.receipts(RUN) == builder.chains[RUN]
    for refused in (store.acquire(0), store.append(builder.commit()), store.store("f", {}, 0), store.reopen()):
        with pytest.raises(StorageUnavailable, match="reading only"):
            await refused
    await store.close()
    assert {file.name for file in (tmp_path / "store").iterdir()} == names
    with pytest.raises(InvalidConfiguration):
        RocksDbStore.open(tmp_path / "nothing", OPTIONS, read_only=True)


async def test_directories_of_others_are_refused_and_not_touched(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidConfiguration, match=r"thesis\.txt"):
        RocksDbStore.open(documents, OPTIONS)
    assert [file.name for file in documents.iterdir()] == ["thesis.txt"]
    other = Rdict(str(tmp_path / "other"), Options(raw_mode=True))
    other[b"k"] = b"v"
    other.close()
    with pytest.raises(InvalidConfiguration, match="something else"):
        RocksDbStore.open(tmp_path / "other", OPTIONS)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidConfiguration, match="not a directory"):
        RocksDbStore.open(tmp_path / "file", OPTIONS)


async def test_a_fresh_volume_may_hold_lost_and_found(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    await RocksDbStore.open(tmp_path, OPTIONS).close()
    await RocksDbStore.open(tmp_path, OPTIONS).close()


async def test_a_making_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    HeadWitness(tmp_path, {}).close()
    await filled(tmp_path)
    half = tmp_path / "half"
    half.mkdir()
    HeadWitness(half, {}).close()
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    Rdict(str(half), options).close()
    await filled(half)


async def test_a_missing_witness_is_refused_and_an_empty_one_is_a_word(tmp_path: Path) -> None:
    await filled(tmp_path / "store")
    witness = tmp_path / "store" / FILE_NAME
    witness.unlink()
    with pytest.raises(JournalCorrupt, match=r"no journal\.head") as refused:
        RocksDbStore.open(tmp_path / "store", OPTIONS)
    assert "empty file" in refused.value.advice
    witness.touch()
    store = RocksDbStore.open(tmp_path / "store", OPTIONS)
    assert witness.stat().st_size == FILE_BYTES
    assert (await store.head(0)) is not None
    await store.close()
    witness.write_bytes(b"short")
    with pytest.raises(JournalCorrupt, match="5 bytes"):
        RocksDbStore.open(tmp_path / "store", OPTIONS)


async def test_a_witness_that_lags_is_believed_and_one_of_another_journal_is_not(tmp_path: Path) -> None:
    await filled(tmp_path / "store", commits=1)
    early = (tmp_path / "store" / FILE_NAME).read_bytes()
    await filled(tmp_path / "store", commits=2)
    (tmp_path / "store" / FILE_NAME).write_bytes(early)
    await RocksDbStore.open(tmp_path / "store", OPTIONS).close()
    await filled(tmp_path / "other", commits=0)
    store = RocksDbStore.open(tmp_path / "other", OPTIONS)
    builder = CommitBuilder(await store.acquire(0))
    await store.append(builder.commit([builder.slice(workflow_id(9), 1)]))
    await store.close()
    (tmp_path / "other" / FILE_NAME).write_bytes(early)
    with pytest.raises(JournalCorrupt, match="block 0 of partition 0 is not the one"):
        RocksDbStore.open(tmp_path / "other", OPTIONS)
