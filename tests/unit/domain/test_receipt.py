"""Receipts: whatever is changed, lost, added or moved is found, by the chain or by the block's Merkle root."""

from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain import event as ev
from knhk.domain.event import Event, Failure
from knhk.domain.receipt import (
    EMPTY_ROOT,
    NO_HASH,
    Block,
    Sealed,
    SignedBlock,
    encode_block,
    inclusion_path,
    merkle_root,
    root_from_path,
    seal,
    verify_chain,
)

RUN = 132_271_570_944_000_000
DIGEST = sha256(b"descriptor").digest()
DETAILS: tuple[ev.AnyDetail, ...] = (
    ev.Submitted("orders", "sales", steps=2, labels={"tier": "gold"}),
    ev.Started(deadline_ns=9),
    ev.StepStarted(7),
    ev.StepRetrying(Failure("TEST", "again"), 5, 4),
    ev.StepCompleted(3),
    ev.TimerSet(8),
    ev.Completed(results_root=DIGEST),
)


def chain(count: int, run: int = RUN) -> list[Sealed]:
    """A run's receipts, as many as asked for."""
    sealed: list[Sealed] = []
    for seq in range(count):
        event = Event(1_000 + seq, DETAILS[seq % len(DETAILS)], step=f"s{seq}", attempt=1, output_digest=DIGEST)
        sealed.append(seal(event, run, seq, DIGEST, sealed[-1].hash if sealed else NO_HASH))
    return sealed


CHAIN = chain(9)
ROOT = merkle_root(one.hash for one in CHAIN)


def found(receipts: list[Sealed]) -> bool:
    """Whether the chain, or the root over the leaves, tells that these are not the receipts of CHAIN."""
    return bool(verify_chain(RUN, receipts)) or merkle_root(one.hash for one in receipts) != ROOT


def rfc_root(leaves: list[bytes]) -> bytes:
    """The Merkle tree hash as RFC 9162, 2.1.1 defines it."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + rfc_root(leaves[:split]) + rfc_root(leaves[split:])).digest()


hashes = st.lists(st.binary(min_size=32, max_size=32), max_size=70)


def test_an_intact_chain_has_no_fault() -> None:
    assert not found(CHAIN)
    assert verify_chain(RUN, []) == []


def test_every_flipped_byte_of_every_receipt_is_found() -> None:
    for seq, one in enumerate(CHAIN):
        for at in range(len(one.body)):
            body = one.body[:at] + bytes([one.body[at] ^ 0x01]) + one.body[at + 1 :]
            assert verify_chain(RUN, [*CHAIN[:seq], Sealed(one.hash, body), *CHAIN[seq + 1 :]]), (seq, at)
        for at in range(len(one.hash)):
            hash_ = one.hash[:at] + bytes([one.hash[at] ^ 0x80]) + one.hash[at + 1 :]
            assert verify_chain(RUN, [*CHAIN[:seq], Sealed(hash_, one.body), *CHAIN[seq + 1 :]]), (seq, at)


@given(st.data())
def test_any_change_to_the_bytes_of_a_receipt_is_found(data: st.DataObject) -> None:
    seq = data.draw(st.integers(0, len(CHAIN) - 1))
    body = data.draw(st.binary(max_size=300).filter(lambda raw: raw != CHAIN[seq].body))
    assert verify_chain(RUN, [*CHAIN[:seq], Sealed(CHAIN[seq].hash, body), *CHAIN[seq + 1 :]])


@given(st.data())
def test_a_receipt_that_was_forged_with_its_hash_is_found(data: st.DataObject) -> None:
    """Whoever changes a receipt and computes its hash again breaks the next link, or the root if it was the last."""
    seq = data.draw(st.integers(0, len(CHAIN) - 1))
    field = data.draw(st.sampled_from(["at_ns", "attempt", "actor", "step", "input_digest", "output_digest"]))
    receipt = CHAIN[seq].receipt()
    value = getattr(receipt, field)
    forged = msgspec.structs.replace(receipt, **{field: value + (1 if isinstance(value, int) else type(value)())})
    if isinstance(value, str | bytes):
        forged = msgspec.structs.replace(receipt, **{field: value + (b"x" if isinstance(value, bytes) else "x")})
    body = msgspec.msgpack.encode(forged)
    resealed = Sealed(sha256(b"\x02" + body).digest(), body)
    assert resealed.is_intact()
    assert found([*CHAIN[:seq], resealed, *CHAIN[seq + 1 :]])


@given(st.permutations(range(len(CHAIN))))
def test_any_reordering_is_found(order: list[int]) -> None:
    assert found([CHAIN[seq] for seq in order]) == (order != sorted(order))


@given(st.sets(st.integers(0, len(CHAIN) - 1), min_size=1))
def test_any_loss_is_found(lost: set[int]) -> None:
    assert found([one for seq, one in enumerate(CHAIN) if seq not in lost])


@given(st.integers(0, len(CHAIN) - 1), st.integers(0, len(CHAIN)))
def test_any_duplicate_is_found(seq: int, at: int) -> None:
    assert verify_chain(RUN, [*CHAIN[:at], CHAIN[seq], *CHAIN[at:]])


@pytest.mark.parametrize("kept", range(len(CHAIN)))
def test_a_cut_end_is_found_by_the_root(kept: int) -> None:
    assert verify_chain(RUN, CHAIN[:kept]) == []
    assert found(CHAIN[:kept])


def test_a_receipt_of_another_run_is_found() -> None:
    foreign = chain(9, RUN + 1)
    assert {fault.what for fault in verify_chain(RUN, foreign)} == {"foreign"}
    assert verify_chain(RUN, [*CHAIN[:4], foreign[4], *CHAIN[5:]])


def test_faults_say_what_is_wrong_and_where() -> None:
    assert [(fault.seq, fault.what) for fault in verify_chain(RUN, CHAIN[:3] + CHAIN[4:])] == [(3, "missing")]
    back = seal(Event(1, ev.Started()), RUN, 1, DIGEST, CHAIN[0].hash)
    assert [fault.what for fault in verify_chain(RUN, [CHAIN[0], back])] == ["time_reversal"]


def test_a_kind_of_a_later_version_is_named_and_not_taken_as_good() -> None:
    receipt = msgspec.structs.replace(CHAIN[0].receipt(), kind="workflow.teleported")
    body = msgspec.msgpack.encode(receipt)
    faults = verify_chain(RUN, [Sealed(sha256(b"\x02" + body).digest(), body)])
    assert [fault.what for fault in faults] == ["corrupt"]


@given(st.sampled_from(DETAILS), st.text(max_size=20), st.integers(0, 2**62), st.binary(max_size=32))
def test_a_sealed_event_comes_back_as_it_was(detail: ev.AnyDetail, step: str, at_ns: int, digest: bytes) -> None:
    event = Event(at_ns, detail, step=step, attempt=2, actor="ada", input_digest=digest)
    sealed = seal(event, RUN, 0, DIGEST, NO_HASH)
    assert sealed.is_intact()
    assert sealed.receipt().event() == event
    assert seal(event, RUN, 0, DIGEST, NO_HASH) == sealed


@given(hashes)
def test_the_root_is_that_of_the_rfc(leaves: list[bytes]) -> None:
    assert merkle_root(leaves) == rfc_root(leaves)
    assert merkle_root([]) == EMPTY_ROOT


@given(hashes.filter(bool), st.data())
def test_every_leaf_is_proved_and_no_other(leaves: list[bytes], data: st.DataObject) -> None:
    root = merkle_root(leaves)
    for index, leaf in enumerate(leaves):
        path = inclusion_path(leaves, index)
        assert root_from_path(leaf, index, len(leaves), path) == root
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = inclusion_path(leaves, index)
    other = data.draw(st.binary(min_size=32, max_size=32).filter(lambda raw: raw != leaves[index]))
    assert root_from_path(other, index, len(leaves), path) != root
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        mutated = [*path[:at], bytes(byte ^ 1 for byte in path[at]), *path[at + 1 :]]
        assert root_from_path(leaves[index], index, len(leaves), mutated) != root
        with pytest.raises(ValueError, match="short"):
            root_from_path(leaves[index], index, len(leaves), path[:-1])
    with pytest.raises(ValueError, match="long"):
        root_from_path(leaves[index], index, len(leaves), [*path, NO_HASH])


@given(hashes.filter(bool), st.data())
def test_a_changed_leaf_changes_the_root(leaves: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(leaves) - 1))
    changed = [*leaves[:at], bytes(byte ^ 1 for byte in leaves[at]), *leaves[at + 1 :]]
    assert merkle_root(changed) != merkle_root(leaves)
    assert merkle_root([*leaves, leaves[-1]]) != merkle_root(leaves), "a leaf repeated at the end is another tree"


@pytest.mark.parametrize(("index", "count"), [(-1, 3), (3, 3), (0, 0)])
def test_a_leaf_that_does_not_exist_has_no_proof(index: int, count: int) -> None:
    with pytest.raises(IndexError):
        inclusion_path([NO_HASH] * count, index)
    with pytest.raises(ValueError, match="does not exist"):
        root_from_path(NO_HASH, index, count, [])


def test_a_node_cannot_be_passed_off_as_a_leaf() -> None:
    """The prefixes keep leaves and nodes apart (second preimage)."""
    left, right = sha256(b"\x00" + b"a" * 32).digest(), sha256(b"\x00" + b"b" * 32).digest()
    assert merkle_root([left + right]) != merkle_root([b"a" * 32, b"b" * 32])


@given(st.integers(0, 2**40), st.text(max_size=20))
def test_a_block_s_hash_covers_every_field(height: int, node_id: str) -> None:
    block = Block(0, 1, height, 10, 3, ROOT, NO_HASH, 5, node_id, "key")
    signed = SignedBlock(encode_block(block), b"", ())
    assert signed.block() == block
    for name in Block.__struct_fields__:
        value = getattr(block, name)
        changed = value + (1 if isinstance(value, int) else b"x" if isinstance(value, bytes) else "x")
        other = SignedBlock(encode_block(msgspec.structs.replace(block, **{name: changed})), b"", ())
        assert other.hash() != signed.hash(), name
