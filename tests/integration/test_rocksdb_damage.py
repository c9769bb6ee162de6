"""Damage on disk is refused or harmless, never accepted: what can be read afterwards is exactly what was written."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knhk.domain.errors import Corrupt, JournalCorrupt, ReceiptCorrupt
from knhk.persistence.head_witness import FILE_NAME
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_keys import block_key, run_key
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.ports.append import Payload
from knhk.ports.environment import PublicKey
from knhk.ports.journal import Claim
from tests.builders import CommitBuilder, workflow_id

OPTIONS = StoreOptions(write_buffer_size_bytes=1 << 20, block_cache_size_bytes=1 << 20, max_background_jobs=2)
SEED = 20260707
POSITIONS = 8
SOAK_POSITIONS = 250
WITHOUT_MEANING = ("LOG", "LOCK", "IDENTITY")
"""RocksDB's diagnostics, its lock and its id: nothing is read from them."""


async def write(path: Path, commits: int, *, flush_at: int = -1) -> CommitBuilder:
    """A store with some of everything, left as by a killed process: what was not flushed is in the log only."""
    living = path.with_name(path.name + "-living")
    store = RocksDbStore.open(living, OPTIONS)
    await store.register_key(PublicKey("key-1", bytes(32), 1))
    builder = CommitBuilder(await store.acquire(0))
    for number in range(commits):
        run = workflow_id(number // 3)
        payload = Payload(number % 3, 1, b"payload %d " % number * 40)
        claims = [Claim(number.to_bytes(32, "big"), run, bytes(32))]
        commit = builder.commit(
            [builder.slice(run, 1, [payload])], claims=claims, live=[run], timers_set=[(number, run)]
        )
        await store.append(commit)
        await store.store("fold", {b"%d" % number: b"row"}, number)
        if number == flush_at:
            store._database.flush()
    shutil.copytree(living, path)
    await store.close()
    return builder


async def content(path: Path, *, read_only: bool = False) -> list[Any]:
    """Every byte that the store gives; raises what it raises."""
    store = RocksDbStore.open(path, OPTIONS, read_only=read_only)
    try:
        scanner = store.scanner()
        scanner.verify_files()
        found: list[Any] = [list(scanner.scan_receipts()), list(scanner.scan_blocks()), list(scanner.scan_payloads())]
        found += [await store.head(0), await store.keys(), await store.live(0), await store.timers(0, 1 << 60, 10_000)]
        found += [await store.claim(number.to_bytes(32, "big")) for number in range(30)]
        # Rows of projections may go back to an earlier state, but only together with their cursor.
        assert set(await store.rows("fold", b"")) == {
            (b"%d" % number, b"row") for number in range(await store.cursor("fold") + 1)
        }
        return found
    finally:
        await store.close()


def damaged_copies(original: Path, scratch: Path, damage: Callable[[bytearray, int], None], count: int) -> Any:
    """A damaged copy for `count` seeded positions of each file, with the names of the file and the position."""
    rng = random.Random(SEED)
    for file in sorted(original.iterdir()):
        size = file.stat().st_size
        if size == 0 or file.name.startswith(WITHOUT_MEANING):
            continue
        for position in sorted(rng.sample(range(size), min(count, size))):
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(original, scratch)
            raw = bytearray(file.read_bytes())
            damage(raw, position)
            (scratch / file.name).write_bytes(raw)
            yield file.name, position


def flip(raw: bytearray, position: int) -> None:
    raw[position] ^= 1 << (position % 8)


def overwrite(raw: bytearray, position: int) -> None:
    raw[position : position + 64] = b"\xa5" * len(raw[position : position + 64])


async def assert_never_accepted(tmp_path: Path, flush_at: int, damage: Any, count: int) -> None:
    original = tmp_path / "original"
    await write(original, 24, flush_at=flush_at)
    shutil.copytree(original, tmp_path / "reference")
    before = await content(tmp_path / "reference")
    refused = 0
    for name, position in damaged_copies(original, tmp_path / "copy", damage, count):
        try:
            after = await content(tmp_path / "copy")
        except Corrupt as error:
            refused += 1
            named = [str(tmp_path / "copy") in error.message, "block" in error.message, "wf-" in error.message]
        except BaseException as error:
            raise AssertionError(f"{name}, byte {position}: {error!r}") from error
        else:
            assert after == before, f"{name}, byte {position}: other data were read, and nobody was told"
            continue
        assert any(named), f"{name}, byte {position}: the error does not say where"
    assert refused > count


@pytest.mark.parametrize("damage", [flip, overwrite])
@pytest.mark.parametrize("flush_at", [-1, 12], ids=["log", "files"])
async def test_damaged_bytes_are_never_accepted(tmp_path: Path, flush_at: int, damage: Any) -> None:
    await assert_never_accepted(tmp_path, flush_at, damage, POSITIONS)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("damage", [flip, overwrite])
@pytest.mark.parametrize("flush_at", [-1, 12], ids=["log", "files"])
async def test_damaged_bytes_are_never_accepted_anywhere(tmp_path: Path, flush_at: int, damage: Any) -> None:
    await assert_never_accepted(tmp_path, flush_at, damage, SOAK_POSITIONS)


def the_log(path: Path) -> Path:
    """The one log file that is not empty."""
    return next(file for file in path.glob("*.log") if file.stat().st_size)


async def test_a_torn_record_at_the_end_of_the_log_is_forgiven(tmp_path: Path) -> None:
    store = RocksDbStore.open(tmp_path / "living", OPTIONS)
    builder = CommitBuilder(await store.acquire(0))
    run = workflow_id(1)
    for _ in range(5):
        await store.append(builder.commit([builder.slice(run, 2)]))
    whole = the_log(tmp_path / "living").stat().st_size
    witness = (tmp_path / "living" / FILE_NAME).read_bytes()
    await store.append(builder.commit([builder.slice(run, 2)]))
    for cut in (1, 3, 7, 20, 200):
        copy = tmp_path / f"cut-{cut}"
        shutil.copytree(tmp_path / "living", copy)
        with the_log(copy).open("r+b") as log:
            log.truncate(whole + cut)
        (copy / FILE_NAME).write_bytes(witness)
        recovered = RocksDbStore.open(copy, OPTIONS)
        assert await recovered.receipts(run) == builder.chains[run][:10]
        ownership = await recovered.acquire(0)
        assert ownership.head is not None
        assert ownership.head.block().height == 4
        await recovered.append(CommitBuilder(ownership).commit())
        await recovered.close()
    await store.close()


async def test_a_log_that_lost_acknowledged_commits_is_refused_and_left_alone(tmp_path: Path) -> None:
    original = tmp_path / "original"
    await write(original, 12)
    size = the_log(original).stat().st_size
    rng = random.Random(SEED)
    for number, length in enumerate([0, size - 400, *rng.sample(range(size - 400), 8)]):
        copy = tmp_path / str(number)
        shutil.copytree(original, copy)
        with the_log(copy).open("r+b") as log:
            log.truncate(length)
        found = {file.name: file.read_bytes() for file in copy.iterdir()}
        with pytest.raises(JournalCorrupt, match=r"has lost its end: blocks [0-9]+ to 11|version of the format"):
            RocksDbStore.open(copy, OPTIONS)
        assert {file.name: file.read_bytes() for file in copy.iterdir()} == found


async def test_a_length_byte_that_hides_the_last_commit_is_noticed(tmp_path: Path) -> None:
    """The damage that RocksDB takes for a torn tail: only journal.head tells."""
    original = tmp_path / "living"
    store = RocksDbStore.open(original, OPTIONS)
    builder = CommitBuilder(await store.acquire(0))
    await store.append(builder.commit([builder.slice(workflow_id(1), 1)]))
    start = the_log(original).stat().st_size
    await store.append(builder.commit([builder.slice(workflow_id(1), 1)]))
    shutil.copytree(original, tmp_path / "copy")
    await store.close()
    log = the_log(tmp_path / "copy")
    raw = bytearray(log.read_bytes())
    raw[start + 5] ^= 0x40  # the high byte of the record's length
    log.write_bytes(raw)
    with pytest.raises(JournalCorrupt, match="blocks 1 to 1 were acknowledged"):
        RocksDbStore.open(tmp_path / "copy", OPTIONS)


async def test_a_file_that_is_gone_is_noticed(tmp_path: Path) -> None:
    original = tmp_path / "original"
    await write(original, 12, flush_at=6)
    shutil.copytree(original, tmp_path / "reference")
    before = await content(tmp_path / "reference")
    for file in sorted(original.iterdir()):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
        (copy / file.name).unlink()
        needed = file.suffix in (".sst", ".log") and file.stat().st_size > 0
        if needed or file.name == "CURRENT" or file.name.startswith(("MANIFEST", FILE_NAME)):
            with pytest.raises(JournalCorrupt):
                await content(copy)
        else:
            assert await content(copy) == before, file.name


async def test_a_gap_between_blocks_is_noticed(tmp_path: Path) -> None:
    store = RocksDbStore.open(tmp_path / "store", OPTIONS)
    builder = CommitBuilder(await store.acquire(0))
    for _ in range(5):
        await store.append(builder.commit([builder.slice(workflow_id(1), 1)]))
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    await store.close()
    damaged = RocksDbStore.open(tmp_path / "copy", OPTIONS)
    del damaged._database._families["blocks"][block_key(0, 3)]
    await damaged.close()
    with pytest.raises(JournalCorrupt, match="gap: blocks 3 to 3 are missing"):
        RocksDbStore.open(tmp_path / "copy", OPTIONS)


async def test_a_payload_that_cannot_be_decoded_is_corrupt(tmp_path: Path) -> None:
    store = RocksDbStore.open(tmp_path / "store", OPTIONS)
    builder = CommitBuilder(await store.acquire(0))
    run = workflow_id(1)
    await store.append(builder.commit([builder.slice(run, 1, [Payload(0, 0, b"x")])]))
    store._database._families["payloads"][run_key(run, 0)] = b"\x01not a frame"
    store._database._families["receipts"][run_key(run, 0)] = b"\xc1"
    with pytest.raises(ReceiptCorrupt):
        await store.payload(run, 0, 0)
    with pytest.raises(JournalCorrupt, match=f"wf-{run}"):
        await store.receipts(run)
    await store.close()
