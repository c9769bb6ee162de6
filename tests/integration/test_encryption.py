"""Encryption at rest, in the store: nothing readable on the disk, no row that is changed or moved is believed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from rocksdict import WriteBatch

from knhk.domain import event as ev
from knhk.domain.errors import Corrupt, DataErased, EncryptionKeyUnavailable, NotFound
from knhk.persistence.cipher import Cipher, in_clear, is_sealed, run_path
from knhk.persistence.journal_check import verify_all, verify_workflow
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_keys import DESCRIPTOR, run_key
from knhk.persistence.rocksdb_options import StoreOptions
from tests.key_rings import cipher, key_ring
from tests.unit.cli.journal import DESCRIPTOR as TEXT
from tests.unit.cli.journal import DIGEST, FIRST, OBSERVED, SECOND, Writer, trust, write_journal

OPTIONS = StoreOptions(
    write_buffer_size_bytes=1 << 20, block_cache_size_bytes=1 << 20, max_background_jobs=2, compression="none"
)
SECRET = "Ada Lovelace, 10 December 1815"


def open_store(path: Path, *, keys: bool = True, encrypting: bool = True, read_only: bool = False) -> RocksDbStore:
    ring = key_ring(path.parent / "keys") if keys else None
    return RocksDbStore.open(path, OPTIONS, read_only=read_only, cipher=Cipher(ring, encrypting=encrypting))


async def report(store: RocksDbStore) -> Any:
    return await verify_all(store, store.scanner(), trust(), lambda *_: None)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """An encrypted data directory with the usual four runs, a secret in each place, and rows of a fold."""
    store = open_store(tmp_path / "data")
    await write_journal(store)
    await store.store("runs", {b"row": SECRET.encode(), b"empty": b"", b"odd": b"\xc1\x01" + SECRET.encode()}, 4)
    await store.close()
    return tmp_path / "data"


async def test_nothing_that_users_wrote_is_readable_on_the_disk(tmp_path: Path) -> None:
    for encrypting in (True, False):
        directory = tmp_path / str(encrypting) / "data"
        directory.parent.mkdir()
        store = open_store(directory, encrypting=encrypting)
        await store.acquire(0)
        writer = Writer(store)
        writer.add(FIRST, ev.Submitted(SECRET, labels={"patient": SECRET}), given={"name": SECRET}, keep=True)
        await writer.commit()
        writer.add(FIRST, ev.StepCompleted(), "a", output=SECRET)
        writer.add(FIRST, ev.Failed(ev.Failure("X", SECRET)))
        await writer.commit()
        await store.store("runs", {b"row": SECRET.encode()}, 1)
        await store.close()
        raw = b"".join(file.read_bytes() for file in sorted(directory.iterdir()))
        assert (SECRET.encode() in raw) is not encrypting
        assert (TEXT in raw) is not encrypting


async def test_everything_verifies_with_the_key(path: Path) -> None:
    for read_only in (True, False):
        store = open_store(path, read_only=read_only)
        found = await report(store)
        assert (found.valid, found.total_count, found.verified_count, found.locked) == (True, 19, 19, 0), found.problems
        store.scanner().verify_files()
        assert await store.descriptor(DIGEST) == TEXT
        assert await store.row("runs", b"row") == SECRET.encode()
        assert dict(await store.rows("runs", b"")) == {
            b"row": SECRET.encode(),
            b"empty": b"",
            b"odd": b"\xc1\x01" + SECRET.encode(),
        }
        await store.close()


async def test_without_the_key_the_hashes_are_proven_and_it_is_said_what_was_not_read(path: Path) -> None:
    store = open_store(path, keys=False, read_only=True)
    found = await report(store)
    assert (found.valid, found.total_count, found.verified_count) == (True, 19, 0), found.problems
    assert found.locked == 19 + 5, "receipts, and rows of payloads"
    assert found.signature_failures == found.missing == 0
    store.scanner().verify_files()
    for ask in (store.receipts(FIRST), store.payload(FIRST, 0, 0), store.descriptor(DIGEST), store.row("runs", b"row")):
        with pytest.raises(EncryptionKeyUnavailable):
            await ask
    with pytest.raises(EncryptionKeyUnavailable):
        await verify_workflow(store, FIRST, trust())
    await store.close()


async def test_without_the_key_a_receipt_that_is_lost_or_replaced_shows_all_the_same(path: Path) -> None:
    """The signed blocks prove every hash, whoever may read the receipts."""
    await change(path, "receipts", run_key(SECOND, 1), None)
    store = open_store(path, keys=False, read_only=True)
    found = await report(store)
    assert not found.valid
    assert found.missing
    await store.close()


async def change(path: Path, family: str, key: bytes, value: bytes | None) -> None:
    """Replace a row behind the store's back."""
    store = RocksDbStore.open(path, OPTIONS, cipher=cipher(path.parent / "keys"))
    batch = WriteBatch(raw_mode=True)
    if value is None:
        batch.delete(key, store._database.handles[family])
    else:
        batch.put(key, value, store._database.handles[family])
    store._database.write(batch)
    await store.close()


async def read_all(store: RocksDbStore) -> None:
    """Read every row that can be encrypted; raises if one is not what was written."""
    found = await report(store)
    if not found.valid:
        raise Corrupt("; ".join(found.problems))
    store.scanner().verify_files()
    await store.rows("runs", b"")


KINDS = [
    ("receipts", run_key(FIRST, 0), f"wf-{FIRST}"),
    ("payloads", run_key(FIRST, 0), f"wf-{FIRST}"),
    ("index", DESCRIPTOR + DIGEST, (DESCRIPTOR + DIGEST).hex()),
    ("runs", b"rruns\x00row", b"rruns\x00row".hex()),
]


@pytest.mark.parametrize(("family", "key", "name"), KINDS, ids=[kind[0] for kind in KINDS])
async def test_a_flipped_bit_in_every_kind_of_encrypted_row_is_found_and_named(
    path: Path, family: str, key: bytes, name: str
) -> None:
    store = open_store(path)
    row = store._database.get(family, key)
    assert row is not None
    assert row[:1] == b"\xc1"
    handle = store._database.handles[family]
    first = 2 if family == "runs" else 0  # a row of a fold that claims to be in clear is the fold's to judge
    for at in [*range(first, min(len(row), 70)), *range(70, len(row), 5), len(row) - 1]:
        batch = WriteBatch(raw_mode=True)
        batch.put(key, row[:at] + bytes([row[at] ^ (1 << (at % 8))]) + row[at + 1 :], handle)
        store._database.write(batch)
        with pytest.raises((Corrupt, EncryptionKeyUnavailable, NotFound)) as caught:
            await read_all(store)
        assert name in str(caught.value) or f"wf-{FIRST}" in str(caught.value) or DIGEST.hex() in str(caught.value), at
    for length in (1, 2, 5, 20, len(row) - 1):
        batch = WriteBatch(raw_mode=True)
        batch.put(key, row[:length], handle)
        store._database.write(batch)
        with pytest.raises((Corrupt, EncryptionKeyUnavailable, NotFound)):
            await read_all(store)
    await store.close()


async def test_rows_cannot_be_swapped(path: Path) -> None:
    """Each is bound to its family and key, so that an old or another run's row in its place does not decrypt."""
    original = path.with_name("original")
    shutil.copytree(path, original)
    store = open_store(original, read_only=True)
    first, other = (store._database.get("payloads", run_key(run, 0)) for run in (FIRST, OBSERVED))
    later = store._database.get("receipts", run_key(SECOND, 2))
    row, text = store._database.get("runs", b"rruns\x00row"), store._database.get("index", DESCRIPTOR + DIGEST)
    await store.close()
    assert None not in (first, other, later, row, text)
    for family, key, value in (
        ("payloads", run_key(FIRST, 0), other),
        ("receipts", run_key(SECOND, 1), later),
        ("index", DESCRIPTOR + DIGEST, row),
        ("runs", b"rruns\x00row", text),
    ):
        shutil.rmtree(path)
        shutil.copytree(original, path)
        await change(path, family, key, value)
        store = open_store(path)
        with pytest.raises(Corrupt, match=r"changed or moved|digest"):
            await read_all(store)
        await store.close()


async def test_clear_and_encrypted_rows_live_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "data"
    store = open_store(path, keys=False)
    await write_journal(store)
    await store.store("runs", {b"row": b"in clear", b"odd": b"\xc1\x02odd"}, 4)
    await store.close()
    store = open_store(path)
    ownership = await store.acquire(0)
    assert ownership.head is not None
    assert await store.row("runs", b"odd") == b"\xc1\x02odd"
    await store.store("runs", {b"row2": b"encrypted"}, 4)
    assert is_sealed(store._database.get("runs", b"rruns\x00row2") or b"")
    assert not is_sealed(store._database.get("runs", b"rruns\x00row") or b"")
    assert (await report(store)).valid
    await store.close()
    store = open_store(path, encrypting=False)
    await store.store("runs", {b"row3": b"in clear again"}, 4)
    assert store._database.get("runs", b"rruns\x00row3") == in_clear(b"in clear again")
    assert await store.row("runs", b"row2") == b"encrypted"
    await store.close()


async def test_a_lost_foreign_or_old_ring_is_refused_at_the_start(path: Path) -> None:
    keys = path.parent / "keys"
    with pytest.raises(EncryptionKeyUnavailable, match="there is no key ring") as lost:
        open_store(path, keys=False)
    assert "Put the key ring back" in lost.value.advice
    with pytest.raises(EncryptionKeyUnavailable, match="is encrypted with key ring"):
        RocksDbStore.open(path, OPTIONS, cipher=cipher(path.parent / "other-keys"))
    shutil.copytree(keys, path.parent / "old-keys")
    store = open_store(path)
    key_ring(keys).add_generation(2)
    store.cipher.keys = key_ring(keys)
    await store.note_ring()
    await store.close()
    with pytest.raises(EncryptionKeyUnavailable, match="an old copy"):
        RocksDbStore.open(path, OPTIONS, cipher=cipher(path.parent / "old-keys"))
    store = open_store(path)
    assert (await report(store)).valid
    await store.close()


# -- Erasure


async def erase(store: RocksDbStore, run: int) -> None:
    writer = await Writer.resumed(store)
    writer.go_on(run, await store.receipts(run))
    writer.add(run, ev.PayloadErased("asked for"))
    await writer.commit()


async def test_an_erased_run_cannot_be_read_from_a_copy_made_before(path: Path) -> None:
    copy = path.parent / "copy"
    shutil.copytree(path, copy)
    store = open_store(path)
    await erase(store, FIRST)
    assert (await report(store)).valid
    await store.close()
    backup = open_store(copy, read_only=True)
    with pytest.raises(DataErased, match=f"wf-{FIRST}"):
        await backup.payload(FIRST, 0, 0)
    assert await backup.payload(OBSERVED, 0, 0) is not None
    found = await report(backup)
    assert (found.valid, found.verified_count) == (True, 19), found.problems
    assert (await verify_workflow(backup, FIRST, trust())).valid
    await backup.close()


@pytest.mark.parametrize("committed", [True, False])
async def test_an_erasure_that_a_crash_interrupts_is_finished_if_it_was_committed(path: Path, committed: bool) -> None:
    store = open_store(path)
    keys = store.cipher.keys
    assert keys is not None
    if committed:
        keys.settle_erasure = lambda *_args, **_given: None  # type: ignore[method-assign]  # the process dies before
        await erase(store, FIRST)
    else:
        row = store._database.get("payloads", run_key(FIRST, 0)) or b""
        path_of = run_path(row, FIRST)
        assert path_of is not None
        keys.intend_erasure([path_of])
    await store.close()
    again = open_store(path)
    assert again.cipher.keys is not None
    assert len(again.cipher.keys.pending_erasures) == 1
    doomed = again.cipher.keys.pending_erasures[0]
    await again.settle_erasures()
    assert not again.cipher.keys.pending_erasures
    if committed:
        with pytest.raises(DataErased):
            again.cipher.keys.run_key(doomed)
    else:
        assert await again.payload(FIRST, 0, 0) is not None
    found = await report(again)
    assert found.valid, found.problems
    await again.close()
