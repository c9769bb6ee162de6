"""Inclusion proofs: that one receipt is in one signed block, checkable offline with the public key alone.

A proof is a JSON object, described in docs/receipts.md. Making one reads the journal; checking one reads nothing else.
"""

from hashlib import sha256
from typing import Final, Literal

import msgspec

from knhk.domain.errors import InvalidInput, ReceiptCorrupt, ReceiptNotFound, WorkflowNotFound
from knhk.domain.identifier import partition_of, to_text
from knhk.domain.receipt import (
    RECEIPT_PREFIX,
    Block,
    Receipt,
    Sealed,
    SignedBlock,
    inclusion_path,
    merkle_root,
    root_from_path,
)
from knhk.persistence.journal_check import blocks_from, first_height
from knhk.persistence.verification import UNDECODABLE, Trust
from knhk.ports.journal import Journal

FORMAT: Final = "knhk-inclusion-proof/1"


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A proof as it stands in its file; all bytes in hexadecimal."""

    format: Literal["knhk-inclusion-proof/1"]
    workflow_id: str
    seq: int
    receipt: str
    leaf_index: int
    path: list[str]
    block: str
    signature: str


class Proven(msgspec.Struct, frozen=True):
    """What a proof proves if it holds: this receipt is in this block. `objection` says why it does not hold."""

    sealed: Sealed
    receipt: Receipt
    block: Block
    objection: str


async def prove(journal: Journal, workflow_id: int, seq: int, trust: Trust) -> Proof:
    """A proof for a receipt, which has been checked.

    Raises:
        WorkflowNotFound, ReceiptNotFound: there is no such receipt.
        ReceiptCorrupt: the receipt's block does not verify, so that nothing can be proven by it.
    """
    name = to_text(workflow_id)
    receipts = await journal.receipts(workflow_id)
    if not receipts:
        raise WorkflowNotFound(f"there is no workflow {name}")
    if not 0 <= seq < len(receipts):
        raise ReceiptNotFound(f"{name} has receipts 0 to {len(receipts) - 1}, and no receipt {seq}")
    sealed = receipts[seq]
    signed, index = await _block_with(journal, workflow_id, seq, sealed)
    leaves = [one.hash for one in await journal.block_receipts(signed)]
    height = signed.block().height
    if leaves[index : index + 1] != [sealed.hash] or merkle_root(leaves) != signed.block().merkle_root:
        raise ReceiptCorrupt(f"block {height}, which has receipt {seq} of {name}, does not have the receipts it signed")
    path = [one.hex() for one in inclusion_path(leaves, index)]
    made = Proof(FORMAT, name, seq, sealed.body.hex(), index, path, signed.body.hex(), signed.signature.hex())
    objection = check_proof(made, trust).objection
    if objection:
        raise ReceiptCorrupt(f"receipt {seq} of {name} does not verify: {objection}")
    return made


async def _block_with(journal: Journal, workflow_id: int, seq: int, sealed: Sealed) -> tuple[SignedBlock, int]:
    """The block that holds a receipt, and the receipt's place among the leaves."""
    partition = partition_of(workflow_id)
    start = await first_height(journal, partition, sealed.receipt().at_ns)
    for height in (start, 0) if start else (0,):
        async for signed in blocks_from(journal, partition, height):
            index = 0
            for part in signed.slices:
                if part.workflow_id == workflow_id and part.first_seq <= seq < part.first_seq + part.count:
                    return signed, index + seq - part.first_seq
                index += part.count
    raise ReceiptCorrupt(f"receipt {seq} of {to_text(workflow_id)} is in no block")


def decode_proof(raw: bytes) -> Proof:
    """The proof in a file. Raises InvalidInput if it is none."""
    try:
        return msgspec.json.decode(raw, type=Proof)
    except UNDECODABLE as error:
        raise InvalidInput(f"this is not a proof: {error}", hint="Make one with `knhk receipts prove`.") from error


def check_proof(proof: Proof, trust: Trust) -> Proven:
    """Check a proof; nothing is believed but the trusted keys. Raises InvalidInput if its parts cannot be decoded."""
    try:
        body, block_body, signature = (bytes.fromhex(part) for part in (proof.receipt, proof.block, proof.signature))
        path = [bytes.fromhex(one) for one in proof.path]
        sealed = Sealed(sha256(RECEIPT_PREFIX + body).digest(), body)
        receipt = sealed.receipt()
        signed = SignedBlock(block_body, signature, ())
        block = signed.block()
    except (ValueError, *UNDECODABLE) as error:
        raise InvalidInput(f"a part of the proof cannot be decoded: {error}") from error
    return Proven(sealed, receipt, block, _objection(proof, sealed, receipt, signed, block, path, trust))


def _objection(
    proof: Proof,
    sealed: Sealed,
    receipt: Receipt,
    signed: SignedBlock,
    block: Block,
    path: list[bytes],
    trust: Trust,
) -> str:
    if (to_text(receipt.workflow_id), receipt.seq) != (proof.workflow_id, proof.seq):
        return f"it holds receipt {receipt.seq} of {to_text(receipt.workflow_id)}, which is another one"
    if partition_of(receipt.workflow_id) != block.partition:
        return f"the block is of partition {block.partition}, which the workflow does not belong to"
    try:
        root = root_from_path(sealed.hash, proof.leaf_index, block.count, path)
    except ValueError as error:
        return str(error)
    if root != block.merkle_root:
        return "the path does not lead from the receipt to the block's Merkle root"
    return trust.objection(signed, block)
