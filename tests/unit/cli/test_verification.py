"""Whatever is changed in a journal, verification finds it; what was not changed, verifies."""

import asyncio
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain import event as ev
from knhk.domain.errors import JournalCorrupt, WorkflowNotFound
from knhk.domain.receipt import RECEIPT_PREFIX, Block, Sealed, SignedBlock, Slice, encode_block
from knhk.persistence.journal_check import verify_all, verify_workflow
from knhk.persistence.memory import MemoryStore
from knhk.persistence.verification import NAMED_PROBLEMS, Report, Trust
from knhk.ports.environment import PublicKey
from knhk.security.signing import Ed25519Signer
from tests.unit.cli.journal import (
    AT_NS,
    DIGEST,
    ERASED,
    FIRST,
    OBSERVED,
    RUNS,
    SECOND,
    SIGNER,
    Writer,
    all_receipts,
    journal,
    trust,
)

ORIGINAL = asyncio.run(journal())
RECEIPTS = all_receipts(ORIGINAL)
BLOCKS = ORIGINAL._state.blocks[0]


def nothing(_stage: str, _done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def check(store: MemoryStore, trusted: Trust | None = None, scanner: Any = None, payloads: bool = True) -> Report:
    """The report on everything in a store."""
    reader = store.scanner() if scanner is None else scanner
    return asyncio.run(verify_all(store, reader, trusted or trust(), nothing, payloads=payloads))


def check_run(store: MemoryStore, run: int) -> Report:
    """The report on one run."""
    return asyncio.run(verify_workflow(store, run, trust()))


def copy() -> MemoryStore:
    """The journal, to be damaged."""
    return ORIGINAL.survivor()


def flipped(raw: bytes, at: int, bit: int) -> bytes:
    """The bytes with one bit changed."""
    changed = bytearray(raw)
    changed[at % len(raw)] ^= 1 << bit
    return bytes(changed)


def test_what_was_written_verifies() -> None:
    report = check(copy())
    assert report.to_dict() == {
        "valid": True,
        "total_count": len(RECEIPTS),
        "verified_count": len(RECEIPTS),
        "signature_failures": 0,
        "chain_breaks": 0,
        "time_reversals": 0,
        "missing": 0,
        "corrupt": 0,
        "locked": 0,
        "pruned": 0,
        "blocks": 5,
        "workflows": 4,
        "problem_count": 0,
        "problems": [],
        "notes": [],
    }
    for run in RUNS:
        alone = check_run(copy(), run)
        assert alone.valid, alone.problems
        assert alone.verified_count == alone.total_count == len(ORIGINAL._state.receipts[run])


def test_an_empty_journal_is_valid() -> None:
    assert check(MemoryStore()).to_dict()["valid"] is True


def test_an_unknown_workflow_is_an_error_and_never_valid() -> None:
    with pytest.raises(WorkflowNotFound):
        check_run(copy(), 77)


@given(
    st.sampled_from(range(len(RECEIPTS))), st.integers(0, 10_000), st.integers(0, 7), st.sampled_from(["body", "hash"])
)
def test_any_changed_bit_of_any_receipt_is_found(which: int, at: int, bit: int, part: str) -> None:
    run, seq, sealed = RECEIPTS[which]
    store = copy()
    changed = msgspec.structs.replace(sealed, **{part: flipped(getattr(sealed, part), at, bit)})
    store._state.receipts[run][seq] = changed
    report = check(store)
    assert not report.valid
    assert report.verified_count < report.total_count
    assert not check(store, payloads=False).valid
    assert not check_run(store, run).valid


@given(st.sampled_from(range(len(RECEIPTS))), st.sampled_from(["kind", "step", "actor", "at_ns", "output_digest"]))
def test_a_receipt_that_is_forged_with_its_whole_chain_is_found(which: int, name: str) -> None:
    run, seq, _ = RECEIPTS[which]
    store = copy()
    chain = store._state.receipts[run]
    previous = chain[seq - 1].hash if seq else bytes(32)
    for at in range(seq, len(chain)):
        receipt = msgspec.structs.replace(chain[at].receipt(), previous_hash=previous)
        if at == seq:
            value = getattr(receipt, name)
            other: Any = value + 1 if isinstance(value, int) else b"\x01" * 32 if isinstance(value, bytes) else "forged"
            receipt = msgspec.structs.replace(receipt, **{name: other})
        body = msgspec.msgpack.encode(receipt)
        chain[at] = Sealed(sha256(RECEIPT_PREFIX + body).digest(), body)
        previous = chain[at].hash
    assert not check(store).valid
    assert not check(store, payloads=False).valid
    assert not check_run(store, run).valid


@given(st.sampled_from(range(len(RECEIPTS))))
def test_any_lost_receipt_is_found(which: int) -> None:
    run, seq, _ = RECEIPTS[which]
    store = copy()
    del store._state.receipts[run][seq]
    report = check(store)
    assert not report.valid
    assert report.missing >= 1
    if store._state.receipts[run]:
        assert not check_run(store, run).valid


@given(st.sampled_from(RUNS), st.integers(1, 10))
def test_a_run_that_lost_its_end_is_found(run: int, lost: int) -> None:
    store = copy()
    chain = store._state.receipts[run]
    lost = min(lost, len(chain) - 1)
    del chain[-lost:]
    assert not check(store).valid
    report = check_run(store, run)
    assert not report.valid
    assert report.missing >= 1


@given(st.sampled_from(RUNS), st.data())
def test_receipts_in_another_order_or_twice_are_found(run: int, data: st.DataObject) -> None:
    store = copy()
    chain = store._state.receipts[run]
    one, two = data.draw(st.lists(st.integers(0, len(chain) - 1), min_size=2, max_size=2, unique=True))
    chain[one], chain[two] = chain[two], chain[one]
    assert not check(store).valid
    assert not check_run(store, run).valid
    twice = copy()
    twice._state.receipts[run].insert(one, twice._state.receipts[run][one])
    assert not check(twice).valid


@given(
    st.sampled_from(range(len(BLOCKS))),
    st.integers(0, 10_000),
    st.integers(0, 7),
    st.sampled_from(["body", "signature"]),
)
def test_any_changed_bit_of_any_block_is_found(height: int, at: int, bit: int, part: str) -> None:
    store = copy()
    signed = BLOCKS[height]
    changed = msgspec.structs.replace(signed, **{part: flipped(getattr(signed, part), at, bit)})
    store._state.blocks[0][height] = changed
    report = check(store)
    assert not report.valid
    assert report.verified_count < report.total_count


@given(st.sampled_from(range(len(BLOCKS))), st.sampled_from(Block.__struct_fields__), st.booleans())
def test_any_changed_field_of_any_block_is_found_even_if_a_stranger_signs_it(
    height: int, name: str, sign: bool
) -> None:
    stranger = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(b"\x07" * 32), AT_NS)
    store = copy()
    signed = BLOCKS[height]
    value = getattr(signed.block(), name)
    other: Any = value + 1 if isinstance(value, int) else bytes(32) if isinstance(value, bytes) else value + "x"
    if other == value:
        other = b"\x01" * 32
    body = encode_block(msgspec.structs.replace(signed.block(), **{name: other}))
    signature = stranger.sign(b"\x03" + body) if sign else signed.signature
    store._state.blocks[0][height] = SignedBlock(body, signature, signed.slices)
    report = check(store)
    assert not report.valid
    assert report.signature_failures >= 1


@given(st.sampled_from(range(len(BLOCKS))), st.data())
def test_any_changed_leaf_list_is_found(height: int, data: st.DataObject) -> None:
    signed = BLOCKS[height]
    at = data.draw(st.integers(0, len(signed.slices) - 1))
    part = signed.slices[at]
    other = Slice(
        data.draw(st.sampled_from(RUNS)), part.first_seq + data.draw(st.integers(0, 2)), data.draw(st.integers(0, 5))
    )
    if other == part:
        return
    slices = (*signed.slices[:at], other, *signed.slices[at + 1 :])
    store = copy()
    store._state.blocks[0][height] = msgspec.structs.replace(signed, slices=slices)
    assert not check(store).valid


@given(st.sampled_from(range(len(BLOCKS))))
def test_any_lost_block_is_found(height: int) -> None:
    store = copy()
    del store._state.blocks[0][height]
    report = check(store)
    assert not report.valid
    if height < len(BLOCKS) - 1:
        assert report.missing >= 1


def _payloads() -> Iterator[tuple[int, tuple[int, int]]]:
    for run, found in ORIGINAL._state.payloads.items():
        for place in found:
            yield run, place


@pytest.mark.parametrize(("run", "place"), list(_payloads()))
def test_any_changed_or_lost_payload_is_found(run: int, place: tuple[int, int]) -> None:
    store = copy()
    raw = store._state.payloads[run][place]
    store._state.payloads[run][place] = flipped(raw, 0, 0)
    assert not check(store).valid
    assert check(store).verified_count == len(RECEIPTS) - 1
    assert not check_run(store, run).valid
    del store._state.payloads[run][place]
    for report in (check(store), check_run(store, run)):
        assert (report.valid, report.missing) == (False, 1)
    assert check(store, payloads=False).valid  # the quick mode does not read them


def test_a_payload_that_nobody_wrote_is_found() -> None:
    store = copy()
    store._state.payloads.setdefault(ERASED, {})[0, 0] = b"\x80"
    assert not check(store).valid
    store = copy()
    store._state.payloads.setdefault(SECOND, {})[99, 1] = b"\x80"
    assert not check(store).valid
    store = copy()
    for stranger in (FIRST - 1, FIRST + 100):
        store._state.payloads[stranger] = {(0, 0): b"\x80"}
    assert check(store).missing == 2


def test_a_changed_or_lost_descriptor_is_found() -> None:
    store = copy()
    store._state.descriptors[DIGEST] += b"#"
    assert not check(store).valid
    assert not check_run(store, OBSERVED).valid
    store._state.descriptors.clear()
    assert check(store).missing == 1
    assert check(store).verified_count == 0
    assert check_run(store, OBSERVED).missing == 1


def test_only_trusted_keys_count_and_retired_ones_only_for_what_they_signed() -> None:
    stranger = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(b"\x07" * 32), AT_NS)
    report = check(copy(), trust(stranger))
    assert (report.valid, report.signature_failures, report.verified_count) == (False, 5, 0)
    key = SIGNER.public_key
    disguised = Trust.of([PublicKey(key.key_id, stranger.public_key.raw, 0)], trust().check)
    assert check(copy(), disguised).signature_failures == 5
    retired = Trust.of([msgspec.structs.replace(key, retired_at_ns=BLOCKS[1].block().at_ns)], trust().check)
    assert check(copy(), retired).signature_failures == 3


async def _backwards() -> MemoryStore:
    store = MemoryStore()
    await store.acquire(0)
    writer = Writer(store)
    writer.add(FIRST, ev.Submitted("first"))
    await writer.commit()
    writer.add(SECOND, ev.Submitted("second"))
    await writer.commit()
    writer.clock_ns -= 1_000_000
    writer.add(FIRST, ev.Started())
    await writer.commit()
    return store


def test_time_that_ran_backwards_is_reported_and_proves_nothing() -> None:
    store = asyncio.run(_backwards())
    report = check(store)
    assert (report.valid, report.time_reversals, report.verified_count) == (True, 2, 3)
    assert check_run(store, FIRST).valid
    assert check_run(store, SECOND).valid


class Damaged:
    """A scanner that finds damage in the midst of one of its iterations."""

    def __init__(self, scanner: Any, method: str) -> None:
        self._scanner, self._method = scanner, method

    def __getattr__(self, name: str) -> Callable[..., Any]:
        whole = getattr(self._scanner, name)
        if name != self._method:
            return whole  # type: ignore[no-any-return]

        def broken(*args: Any) -> Iterator[Any]:
            yield next(iter(whole(*args)))
            raise JournalCorrupt("block checksum mismatch in 000012.sst")

        return broken


@pytest.mark.parametrize("method", ["scan_receipts", "scan_block_receipts", "scan_payloads"])
def test_what_the_store_cannot_read_is_a_named_problem(method: str) -> None:
    store = copy()
    report = check(store, scanner=Damaged(store.scanner(), method))
    assert not report.valid
    assert any("000012.sst" in problem for problem in report.problems)
    assert report.verified_count < len(RECEIPTS)


def test_problems_are_named_up_to_a_limit_and_counted_beyond() -> None:
    report = Report()
    for number in range(NAMED_PROBLEMS + 5):
        report.note("corrupt", str(number))
    assert (len(report.problems), report.problem_count) == (NAMED_PROBLEMS, NAMED_PROBLEMS + 5)


def test_progress_ends_with_everything_done() -> None:
    seen: dict[str, tuple[int, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        seen[stage] = (done, total)

    store = copy()
    asyncio.run(verify_all(store, store.scanner(), trust(), progress))
    assert seen == {"receipts": (len(RECEIPTS), len(RECEIPTS)), "blocks": (5, 5)}
