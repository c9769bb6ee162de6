"""The parts of the RocksDB store that have no database in them."""

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from knhk.domain.errors import (
    DataDirectoryInUse,
    DiskFull,
    JournalCorrupt,
    KnhkError,
    ReceiptCorrupt,
    StorageUnavailable,
)
from knhk.domain.receipt import Block, SignedBlock, Slice, encode_block
from knhk.persistence import codec, head_witness
from knhk.persistence.block_rows import decode_signed_block
from knhk.persistence.fencing import Tip
from knhk.persistence.head_witness import FILE_NAME, SLOT_BYTES, HeadWitness
from knhk.persistence.memory import MemoryStore
from knhk.persistence.rocksdb_errors import Stalled, translated
from knhk.persistence.rocksdb_keys import after, block_key, run_key, timer_key
from knhk.persistence.wal_writer import WalWriter
from knhk.ports.append import Commit, Payload
from tests.builders import CommitBuilder, workflow_id

PATH = Path("/data")


@given(some.lists(some.binary(max_size=600)), some.booleans())
def test_rows_of_payloads_come_back(raws: list[bytes], compression: bool) -> None:
    payloads = [Payload(number, number % 2, raw) for number, raw in enumerate(raws)]
    assert codec.decode(codec.PayloadCodec(compression).encode(payloads)) == payloads


def test_only_what_shrinks_is_compressed() -> None:
    small, large = [Payload(0, 0, b"a" * 50)], [Payload(0, 0, b"a" * 5000)]
    compressing = codec.PayloadCodec(True)
    assert compressing.encode(small)[:1] == codec.PLAIN
    assert len(compressing.encode(large)) < 200
    assert codec.PayloadCodec(False).encode(large)[:1] == codec.PLAIN


@pytest.mark.parametrize("row", [b"", b"\x00", b"\x00\xc1", b"\x01", b"\x01abc", b"\x02\x90"])
def test_what_is_no_row_is_corrupt(row: bytes) -> None:
    with pytest.raises(ReceiptCorrupt):
        codec.decode(row)


numbers = some.integers(0, (1 << 63) - 1)


@given(numbers, numbers, some.integers(0, 1000), some.integers(0, 1000))
def test_keys_sort_as_their_numbers(one: int, two: int, a: int, b: int) -> None:
    assert (run_key(one, a) < run_key(one, b)) == (a < b)
    assert (block_key(3, one) < block_key(3, two)) == (one < two)
    run = workflow_id(a)
    assert (timer_key(one, run) < timer_key(two, run)) == (one < two)


@given(some.binary(min_size=1).filter(lambda prefix: set(prefix) != {255}), some.binary())
def test_after_a_prefix_comes_what_does_not_have_it(prefix: bytes, rest: bytes) -> None:
    assert prefix + rest < after(prefix)
    assert not after(prefix).startswith(prefix)


def test_the_witness_keeps_each_partition_s_head(tmp_path: Path) -> None:
    assert head_witness.read(tmp_path) is None
    tips = {0: Tip(5, b"a" * 32), 1023: Tip(1 << 40, b"b" * 32)}
    witness = HeadWitness(tmp_path, tips)
    assert head_witness.read(tmp_path) == tips
    witness.note(7, Tip(0, b"c" * 32))
    witness.close()
    witness.close()
    assert head_witness.read(tmp_path) == tips | {7: Tip(0, b"c" * 32)}


@pytest.mark.parametrize("position", range(SLOT_BYTES))
def test_no_damaged_byte_of_the_witness_is_believed(tmp_path: Path, position: int) -> None:
    HeadWitness(tmp_path, {1: Tip(5, b"a" * 32)}).close()
    raw = bytearray((tmp_path / FILE_NAME).read_bytes())
    raw[SLOT_BYTES + position] ^= 4
    (tmp_path / FILE_NAME).write_bytes(raw)
    with pytest.raises(JournalCorrupt, match="the head of partition 1"):
        head_witness.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "opening", "expected"),
    [
        ("IO error: No space left on device: While appending to file", False, DiskFull),
        ("IO error: lock hold by current process: /data/LOCK: No locks available", True, DataDirectoryInUse),
        ("IO error: While lock file: /data/LOCK: Resource temporarily unavailable", True, DataDirectoryInUse),
        ("Result incomplete: Write stall", False, Stalled),
        ("Corruption: block checksum mismatch", False, JournalCorrupt),
        ("IO error: No such file or directory: While open a file: /data/000009.sst", True, JournalCorrupt),
        ("IO error: Input/output error: While fdatasync", False, StorageUnavailable),
        ("IO error: Permission denied", True, StorageUnavailable),
        ("Invalid argument: something", True, JournalCorrupt),
    ],
)
def test_errors_of_rocksdb_are_translated(text: str, opening: bool, expected: type[KnhkError]) -> None:
    found = translated(Exception(text), PATH, "trying", opening=opening)
    assert type(found) is expected
    assert "/data" in found.message


async def test_one_sync_serves_all_who_wait(tmp_path: Path) -> None:
    entered, released, syncs = threading.Event(), threading.Event(), []

    def sync() -> None:
        syncs.append(1)
        entered.set()
        released.wait(5)

    writer, done = WalWriter(sync), asyncio.Event()
    errors: list[KnhkError | None] = []

    def finished(error: KnhkError | None) -> None:
        errors.append(error)
        if len(errors) == 4:
            done.set()

    writer.submit(finished)
    await asyncio.to_thread(entered.wait, 5)
    for _ in range(3):
        writer.submit(finished)
    released.set()
    await asyncio.wait_for(done.wait(), 5)
    writer.stop()
    assert (len(syncs), errors) == (2, [None] * 4)


@pytest.mark.parametrize("stage", ["before", "after"])
async def test_the_memory_store_fails_on_demand(stage: str) -> None:
    stages: list[str] = []
    failing = True

    def fault(at: str, commit: Commit | None) -> None:
        stages.append(at)
        if at == stage and failing:
            raise DiskFull("no room")

    store = MemoryStore(faults=fault)
    builder = CommitBuilder(await store.acquire(0))
    commit = builder.commit([builder.slice(workflow_id(1), 1)])
    with pytest.raises(DiskFull):
        await store.append(commit)
    with pytest.raises(StorageUnavailable):
        await store.append(commit)
    failing = False
    await store.reopen()
    assert (await store.head(0) is not None) == (stage == "after")
    if stage == "before":
        await store.append(commit)
    assert await store.head(0) == commit.signed
    assert stages[-3:] == (["reopen", "before", "after"] if stage == "before" else ["before", "after", "reopen"])


@given(some.integers(0, 300), some.integers(0, 255))
def test_a_damaged_block_is_corrupt_or_another_block(position: int, byte: int) -> None:
    """Text of a header may become no UTF-8; whoever reads a stored block is told so in one way."""
    block = Block(0, 1, 7, 0, 1, bytes(32), bytes(32), 1, "node-ä", "key-ö")
    raw = bytearray(msgspec.msgpack.encode(SignedBlock(encode_block(block), bytes(64), (Slice(1, 0, 1),))))
    raw[position % len(raw)] = byte
    with suppress(JournalCorrupt):
        decode_signed_block(bytes(raw), 0, 7).block()
