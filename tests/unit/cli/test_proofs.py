"""A proof holds for its receipt and for nothing else."""

import asyncio
import contextlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain.errors import InvalidInput, ReceiptCorrupt, ReceiptNotFound, WorkflowNotFound
from knhk.persistence.proofs import Proof, check_proof, decode_proof, prove
from knhk.security.signing import Ed25519Signer
from tests.unit.cli.journal import AT_NS, FIRST, RUNS, all_receipts, journal, trust

ORIGINAL = asyncio.run(journal())
PROOFS = [asyncio.run(prove(ORIGINAL, run, seq, trust())) for run, seq, _ in all_receipts(ORIGINAL)]


def test_every_receipt_can_be_proven() -> None:
    for proof in PROOFS:
        again = decode_proof(msgspec.json.encode(proof))
        proven = check_proof(again, trust())
        assert not proven.objection
        assert proven.receipt.seq == proof.seq


@given(st.sampled_from(PROOFS), st.sampled_from(["receipt", "block", "signature"]), st.integers(0, 10_000))
def test_any_changed_digit_is_found(proof: Proof, name: str, at: int) -> None:
    text = getattr(proof, name)
    at %= len(text)
    digit = "0" if text[at] != "0" else "1"
    changed = msgspec.structs.replace(proof, **{name: text[:at] + digit + text[at + 1 :]})
    with contextlib.suppress(InvalidInput):
        assert check_proof(changed, trust()).objection


@given(st.sampled_from(PROOFS), st.sampled_from(PROOFS))
def test_the_parts_of_two_proofs_do_not_fit_together(one: Proof, two: Proof) -> None:
    for name in Proof.__struct_fields__:
        mixed = msgspec.structs.replace(one, **{name: getattr(two, name)})
        if mixed not in (one, two):
            assert check_proof(mixed, trust()).objection, name


@given(st.sampled_from(PROOFS), st.integers(-2, 8))
def test_another_place_among_the_leaves_does_not_hold(proof: Proof, index: int) -> None:
    if index != proof.leaf_index:
        assert check_proof(msgspec.structs.replace(proof, leaf_index=index), trust()).objection
    longer = msgspec.structs.replace(proof, path=[*proof.path, "00" * 32])
    assert check_proof(longer, trust()).objection


def test_another_key_does_not_do() -> None:
    stranger = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(b"\x07" * 32), AT_NS)
    assert "not among those that are trusted" in check_proof(PROOFS[0], trust(stranger)).objection


def test_what_is_no_proof_is_refused() -> None:
    for raw in (b"", b"[]", b'{"format": "other/1"}', msgspec.json.encode(PROOFS[0]).replace(b'"seq"', b'"sequence"')):
        with pytest.raises(InvalidInput):
            decode_proof(raw)
    with pytest.raises(InvalidInput):
        check_proof(msgspec.structs.replace(PROOFS[0], receipt="not hexadecimal"), trust())


async def test_what_is_not_there_cannot_be_proven() -> None:
    with pytest.raises(WorkflowNotFound):
        await prove(ORIGINAL, 77, 0, trust())
    with pytest.raises(ReceiptNotFound):
        await prove(ORIGINAL, FIRST, 99, trust())


@pytest.mark.parametrize("run", RUNS)
async def test_damage_is_not_proven(run: int) -> None:
    store = ORIGINAL.survivor()
    store._state.receipts[run][0] = store._state.receipts[run][-1]
    with pytest.raises(ReceiptCorrupt):
        await prove(store, run, 0, trust())
