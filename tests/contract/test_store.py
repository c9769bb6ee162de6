"""The contract of Append, Journal, Projections and Storage, which every store keeps."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from knhk.domain.errors import Conflict, Fenced, StorageUnavailable
from knhk.domain.receipt import NO_HASH
from knhk.ports.append import Payload
from knhk.ports.environment import PublicKey
from knhk.ports.journal import Claim
from tests.builders import CommitBuilder, altered, workflow_id
from tests.contract.backends import Backend

A, B, C = (workflow_id(number) for number in (1, 2, 3))
OTHER = workflow_id(1, partition=7)


async def builder_for(store: Any, partition: int = 0) -> CommitBuilder:
    return CommitBuilder(await store.acquire(partition))


async def test_an_empty_store_has_nothing(store: Any) -> None:
    assert await store.head(0) is None
    assert await store.blocks(0, 0, 10) == []
    assert await store.receipts(A) == []
    assert await store.payload(A, 0, 0) is None
    assert await store.descriptor(bytes(32)) is None
    assert await store.claim(bytes(32)) is None
    assert await store.live(0) == []
    assert await store.timers(0, 1 << 62, 10) == []
    assert await store.keys() == []
    assert await store.cursor("index") == -1
    assert await store.row("index", b"k") is None
    assert await store.rows("index", b"") == []


async def test_what_was_appended_is_read(store: Any) -> None:
    builder = await builder_for(store)
    first = builder.commit([builder.slice(A, 3), builder.slice(B, 1)])
    await store.append(first)
    second = builder.commit([builder.slice(B, 2), builder.slice(A, 1)])
    await store.append(second)
    assert await store.head(0) == second.signed
    assert await store.blocks(0, 0, 10) == [first.signed, second.signed]
    assert await store.receipts(A) == builder.chains[A]
    assert await store.receipts(B) == builder.chains[B]
    assert await store.receipts(C) == []
    for commit in (first, second):
        leaves = [sealed for part in commit.slices for sealed in part.receipts]
        assert await store.block_receipts(commit.signed) == leaves


async def test_receipts_from_any_seq(store: Any) -> None:
    builder = await builder_for(store)
    for count in (3, 1, 4):
        await store.append(builder.commit([builder.slice(A, count), builder.slice(B, 1)]))
    for from_seq in range(10):
        assert await store.receipts(A, from_seq) == builder.chains[A][from_seq:]


async def test_blocks_are_paged_by_height(store: Any) -> None:
    builder = await builder_for(store)
    signed = []
    for _ in range(7):
        commit = builder.commit([builder.slice(A, 1)])
        await store.append(commit)
        signed.append(commit.signed)
    assert await store.blocks(0, 2, 3) == signed[2:5]
    assert await store.blocks(0, 5, 10) == signed[5:]
    assert await store.blocks(0, 7, 10) == []
    assert await store.blocks(1, 0, 10) == []


@pytest.mark.parametrize("change", [{"epoch": 0}, {"epoch": 2}, {"height": 0}, {"height": 2}])
async def test_the_wrong_epoch_or_height_is_refused(store: Any, change: dict[str, int]) -> None:
    builder = await builder_for(store)
    first = builder.commit([builder.slice(A, 1)], live=[A])
    await store.append(first)
    second = builder.commit([builder.slice(A, 1)], not_live=[A])
    with pytest.raises(Fenced):
        await store.append(altered(second, **change))
    assert await store.head(0) == first.signed
    assert len(await store.receipts(A)) == 1
    assert await store.live(0) == [A]
    await store.append(second)
    assert await store.head(0) == second.signed


async def test_a_block_that_does_not_follow_is_refused(store: Any) -> None:
    builder = await builder_for(store)
    first = builder.commit([builder.slice(A, 1)])
    with pytest.raises(Fenced):
        await store.append(altered(first, previous_block_hash=bytes(31) + b"\x01"))
    await store.append(first)
    second = builder.commit([builder.slice(A, 1)])
    with pytest.raises(Fenced):
        await store.append(altered(second, previous_block_hash=NO_HASH))
    assert await store.head(0) == first.signed


async def test_a_new_owner_fences_the_old_one(store: Any) -> None:
    old = await builder_for(store)
    await store.append(old.commit([old.slice(A, 1)]))
    ownership = await store.acquire(0)
    assert (ownership.epoch, ownership.head) == (old.epoch + 1, await store.head(0))
    with pytest.raises(Fenced):
        await store.append(old.commit([old.slice(A, 1)]))
    new = CommitBuilder(ownership)
    await store.append(new.commit([new.slice(B, 1)]))
    assert (await store.head(0)).block().epoch == ownership.epoch
    assert len(await store.receipts(A)) == 1


async def test_nobody_appends_before_the_partition_is_acquired(store: Any) -> None:
    builder = await builder_for(store, partition=1)
    builder.partition = 2
    with pytest.raises(Fenced):
        await store.append(builder.commit([builder.slice(workflow_id(1, 2), 1)]))


async def test_partitions_are_apart(store: Any) -> None:
    zero, seven = await builder_for(store), await builder_for(store, 7)
    mine = zero.commit([zero.slice(A, 1)], live=[A], timers_set=[(5, A)])
    others = seven.commit([seven.slice(OTHER, 2)], live=[OTHER], timers_set=[(6, OTHER)])
    await store.append(mine)
    await store.append(others)
    assert await store.head(0) == mine.signed
    assert await store.head(7) == others.signed
    assert (await store.live(0), await store.live(7)) == ([A], [OTHER])
    assert await store.timers(0, 10, 10) == [(5, A)]
    assert await store.timers(7, 10, 10) == [(6, OTHER)]


async def test_payloads_are_found_by_seq_and_slot(store: Any) -> None:
    builder = await builder_for(store)
    big = b"the same words again and again " * 1000
    await store.append(builder.commit([builder.slice(A, 2, [Payload(0, 0, b"in"), Payload(1, 1, big)])]))
    await store.append(builder.commit([builder.slice(A, 3, [Payload(3, 0, b""), Payload(3, 1, b"out")])]))
    found = {(seq, slot): await store.payload(A, seq, slot) for seq in range(6) for slot in (0, 1)}
    assert {key: raw for key, raw in found.items() if raw is not None} == {
        (0, 0): b"in",
        (1, 1): big,
        (3, 0): b"",
        (3, 1): b"out",
    }
    assert await store.payload(B, 0, 0) is None


async def test_erasure_takes_all_payloads_but_those_of_its_own_commit(store: Any) -> None:
    builder = await builder_for(store)
    await store.append(
        builder.commit([builder.slice(A, 1, [Payload(0, 0, b"a")]), builder.slice(B, 1, [Payload(0, 0, b"b")])])
    )
    await store.append(builder.commit([builder.slice(A, 1, [Payload(1, 1, b"c")])]))
    await store.append(builder.commit([builder.slice(A, 1, [Payload(2, 0, b"why")])], erased=[A]))
    assert await store.payload(A, 0, 0) is None
    assert await store.payload(A, 1, 1) is None
    assert await store.payload(A, 2, 0) == b"why"
    assert await store.payload(B, 0, 0) == b"b"
    assert await store.receipts(A) == builder.chains[A]


async def test_descriptors_and_claims(store: Any) -> None:
    builder = await builder_for(store)
    digest, key = sha256(b"d").digest(), sha256(b"k").digest()
    claim = Claim(key, A, sha256(b"r").digest())
    await store.append(builder.commit([builder.slice(A, 1)], descriptors=[(digest, b"d")], claims=[claim]))
    await store.append(builder.commit([builder.slice(B, 1)], descriptors=[(digest, b"d")]))
    assert await store.descriptor(digest) == b"d"
    assert await store.claim(key) == claim
    assert await store.claim(digest) is None


async def test_live_marks_are_listed_oldest_first(store: Any) -> None:
    builder = await builder_for(store)
    await store.append(builder.commit([builder.slice(run, 1) for run in (C, A, B)], live=[C, A, B]))
    assert await store.live(0) == [A, B, C]
    await store.append(builder.commit([builder.slice(B, 1)], not_live=[B]))
    assert await store.live(0) == [A, C]
    await store.append(builder.commit([builder.slice(B, 1)], live=[B, A], not_live=[A]))
    assert await store.live(0) == [B, C]


async def test_timers_are_listed_earliest_first_up_to_a_time(store: Any) -> None:
    builder = await builder_for(store)
    timers = [(300, A), (100, B), (200, A), (100, A), (1 << 62, C)]
    await store.append(builder.commit([builder.slice(A, 1)], timers_set=timers))
    assert await store.timers(0, 200, 10) == [(100, A), (100, B), (200, A)]
    assert await store.timers(0, 199, 10) == [(100, A), (100, B)]
    assert await store.timers(0, 1 << 62, 2) == [(100, A), (100, B)]
    await store.append(
        builder.commit([builder.slice(A, 1)], timers_set=[(50, C)], timers_cleared=[(100, A), (50, C), (7, B)])
    )
    assert await store.timers(0, 200, 10) == [(100, B), (200, A)]


async def test_keys_are_kept_oldest_first_and_can_be_retired(store: Any) -> None:
    old, new = PublicKey("z", b"1" * 32, 10), PublicKey("a", b"2" * 32, 20)
    await store.register_key(new)
    await store.register_key(old)
    assert await store.keys() == [old, new]
    retired = PublicKey("z", b"1" * 32, 10, 20)
    await store.register_key(retired)
    assert await store.keys() == [retired, new]


async def test_rows_of_folds(store: Any) -> None:
    rows: dict[bytes, bytes | None] = {bytes([key]) + b"/k": bytes([key]) for key in (0, 1, 127, 254, 255)}
    await store.store("index", rows, 3)
    await store.store("index2", {b"\x01/k": b"other"}, 9)
    assert await store.cursor("index") == 3
    assert await store.cursor("index2") == 9
    assert await store.row("index", b"\x01/k") == b"\x01"
    assert [value for _, value in await store.rows("index", b"")] == [b"\xff", b"\xfe", b"\x7f", b"\x01", b"\x00"]
    assert await store.rows("index", b"\xff") == [(b"\xff/k", b"\xff")]
    assert await store.rows("index", b"", before=b"\x7f/k", limit=1) == [(b"\x01/k", b"\x01")]
    assert await store.rows("index", b"\x01", before=b"\x01") == []
    assert len(await store.rows("index", b"", limit=2)) == 2
    await store.store("index", {b"\x01/k": None, b"\x00/k": b"new"}, 4)
    assert await store.row("index", b"\x01/k") is None
    assert await store.row("index", b"\x00/k") == b"new"
    assert await store.cursor("index") == 4


async def test_rows_may_be_stored_before_the_first_block(store: Any) -> None:
    await store.store("fold", {b"k": b"v"}, -1)
    assert (await store.cursor("fold"), await store.row("fold", b"k")) == (-1, b"v")
    await store.store("fold", {}, 3)
    await store.store("fold", {}, -1)
    assert await store.cursor("fold") == -1


async def test_everything_outlives_a_restart(backend: Backend) -> None:
    store = backend.open()
    builder = await builder_for(store)
    key = PublicKey("key-1", bytes(32), 1)
    await store.register_key(key)
    claim = Claim(sha256(b"k").digest(), A, sha256(b"r").digest())
    await store.append(
        builder.commit([builder.slice(A, 2, [Payload(1, 1, b"out")])], claims=[claim], live=[A], timers_set=[(9, A)])
    )
    await store.store("index", {b"a": b"b"}, 0)
    head = await store.head(0)
    store = await backend.restart(store)
    assert await store.head(0) == head
    assert await store.receipts(A) == builder.chains[A]
    assert await store.payload(A, 1, 1) == b"out"
    assert await store.claim(claim.key_digest) == claim
    assert (await store.live(0), await store.timers(0, 9, 9), await store.keys()) == ([A], [(9, A)], [key])
    assert (await store.cursor("index"), await store.row("index", b"a")) == (0, b"b")
    ownership = await store.acquire(0)
    assert ownership.epoch == builder.epoch + 1
    assert ownership.head == head
    await store.close()


async def test_reopening_keeps_the_owner_and_the_data(store: Any) -> None:
    builder = await builder_for(store)
    await store.append(builder.commit([builder.slice(A, 1)]))
    await store.reopen()
    commit = builder.commit([builder.slice(A, 1)])
    await store.append(commit)
    assert await store.head(0) == commit.signed
    assert await store.receipts(A) == builder.chains[A]


async def test_a_closed_store_refuses(backend: Backend) -> None:
    store = backend.open()
    builder = await builder_for(store)
    await store.close()
    with pytest.raises(StorageUnavailable):
        await store.append(builder.commit([builder.slice(A, 1)]))
    await store.close()


async def test_a_checkpoint_is_a_store(backend: Backend, store: Any, tmp_path: Path) -> None:
    target = tmp_path / "new" / "copy"
    builder = await builder_for(store)
    await store.register_key(PublicKey("key-1", bytes(32), 1))
    assert await store.checkpoint(tmp_path / "empty") == -1
    for _ in range(3):
        await store.append(builder.commit([builder.slice(A, 1, [Payload(0, 0, b"x")])], live=[A]))
    head = await store.head(0)
    assert await store.checkpoint(target) == 2
    with pytest.raises(Conflict):
        await store.checkpoint(target)
    await store.append(builder.commit([builder.slice(A, 1)], not_live=[A]))
    assert [entry.name for entry in target.parent.iterdir()] == ["copy"]
    copy = backend.open_checkpoint(target)
    assert await copy.head(0) == head
    assert await copy.receipts(A) == builder.chains[A][:3]
    assert await copy.live(0) == [A]
    assert len(await copy.keys()) == 1
    ownership = await copy.acquire(0)
    assert ownership.epoch == builder.epoch + 1
    await copy.close()
    assert await store.receipts(A) == builder.chains[A]


async def test_the_scanner_reads_all_in_order(store: Any) -> None:
    zero, seven = await builder_for(store), await builder_for(store, 7)
    commits = [
        zero.commit([zero.slice(B, 2, [Payload(1, 1, b"o"), Payload(0, 0, b"i")]), zero.slice(A, 1)]),
        seven.commit([seven.slice(OTHER, 1)]),
        zero.commit([zero.slice(B, 1, [Payload(2, 0, b"j")])]),
    ]
    for commit in commits:
        await store.append(commit)
    scanner = store.scanner()
    assert scanner.partitions() == [0, 7]
    runs = [(A, zero.chains[A]), (B, zero.chains[B]), (OTHER, seven.chains[OTHER])]
    assert list(scanner.scan_receipts()) == runs
    assert list(scanner.scan_receipts(7)) == runs[2:]
    assert list(scanner.scan_blocks()) == [commits[0].signed, commits[2].signed, commits[1].signed]
    assert list(scanner.scan_blocks(7)) == [commits[1].signed]
    assert list(scanner.scan_payloads()) == [(B, 0, 0, b"i"), (B, 1, 1, b"o"), (B, 2, 0, b"j")]
    assert list(scanner.scan_payloads(7)) == []
    assert scanner.verify_files() >= 0


async def test_statistics_and_free_space_are_numbers(store: Any) -> None:
    assert store.free_bytes() > 0
    assert all(isinstance(value, float) for value in store.statistics().values())
