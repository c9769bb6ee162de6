"""Receipts: seal, chain, Merkle block, signature, inclusion proof, verification. docs/receipts.md is the public format.

    receipt hash = SHA-256(0x02 || receipt body)      body: canonical msgpack array of the Receipt's fields in order
    leaf         = SHA-256(0x00 || receipt hash)      RFC 9162, section 2.1.1
    node         = SHA-256(0x01 || left || right)
    block hash   = SHA-256(0x03 || block body)        body: canonical msgpack array of the Block's fields in order
    signature    = Ed25519 over 0x03 || block body

A run's receipts form a chain by `previous_hash` (32 zero bytes before the first) and by `seq`, which counts from 0.
Blocks form a chain per partition by `previous_block_hash` and by `height`, which counts from 0.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

import msgspec

from knhk.domain.event import KIND_OF, AnyDetail, Event, decode_detail, encode_detail

LEAF_PREFIX: Final = b"\x00"
NODE_PREFIX: Final = b"\x01"
RECEIPT_PREFIX: Final = b"\x02"
BLOCK_PREFIX: Final = b"\x03"
NO_HASH: Final = bytes(32)
LOCKED: Final = b"\xc1"
"""Stands for the body of a receipt that is encrypted with a key which is not at hand."""
_PRUNED: Final = b"\xc1\x04"
"""Begins what stands for the body of a receipt whose run was pruned; the number of the record of that follows."""
EMPTY_ROOT: Final = sha256(b"").digest()


class Receipt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One immutable record of the journal. The order of the fields is the format: see the module's docstring."""

    workflow_id: int
    seq: int
    kind: str
    step: str
    attempt: int
    at_ns: int
    actor: str
    descriptor_digest: bytes
    input_digest: bytes
    output_digest: bytes
    detail: bytes
    previous_hash: bytes

    def typed_detail(self) -> AnyDetail:
        """The detail as its struct (see event.decode_detail for what it raises)."""
        return decode_detail(self.kind, self.detail)

    def event(self) -> Event:
        """The event that this receipt sealed."""
        return Event(
            at_ns=self.at_ns,
            detail=self.typed_detail(),
            step=self.step,
            attempt=self.attempt,
            actor=self.actor,
            input_digest=self.input_digest,
            output_digest=self.output_digest,
        )


class Sealed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A receipt's hash and its body, the bytes that were hashed. This pair is what is stored."""

    hash: bytes
    body: bytes

    def receipt(self) -> Receipt:
        """The decoded body. Raises msgspec.ValidationError if it is not a receipt."""
        return _RECEIPT_DECODER.decode(self.body)

    @property
    def has_body(self) -> bool:
        """Whether there is a body to look at: neither pruned nor locked."""
        return self.body[:1] != LOCKED

    @classmethod
    def pruned(cls, receipt_hash: bytes, record: int) -> "Sealed":
        """A receipt of which the hash alone is kept."""
        return cls(receipt_hash, _PRUNED + record.to_bytes(8))

    @property
    def pruned_by(self) -> int | None:
        """The record by which the receipt was pruned; None if it was not."""
        return int.from_bytes(self.body[2:]) if self.body[:2] == _PRUNED else None

    def is_intact(self) -> bool:
        """Whether the body still has the hash that was stored with it."""
        return sha256(RECEIPT_PREFIX + self.body).digest() == self.hash


class Block(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The header of one group commit.

    `first_offset` is the number of receipts of the partition before this block, `count` of those in it, `epoch` the
    ownership under which it was written. `key_id` names the signing key.
    """

    partition: int
    epoch: int
    height: int
    first_offset: int
    count: int
    merkle_root: bytes
    previous_block_hash: bytes
    at_ns: int
    node_id: str
    key_id: str


class Slice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The receipts of one run in one block: `count` of them from `first_seq` on."""

    workflow_id: int
    first_seq: int
    count: int


class SignedBlock(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A block header's body (the signed bytes), its signature, and which receipts are its leaves, in leaf order."""

    body: bytes
    signature: bytes
    slices: tuple[Slice, ...]

    def block(self) -> Block:
        """The decoded header. Raises msgspec.ValidationError if it is not one."""
        return _BLOCK_DECODER.decode(self.body)

    def hash(self) -> bytes:
        """The block's hash, which the next block of the partition names."""
        return sha256(BLOCK_PREFIX + self.body).digest()


_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_RECEIPT_DECODER = msgspec.msgpack.Decoder(Receipt)
_BLOCK_DECODER = msgspec.msgpack.Decoder(Block)


def seal(event: Event, workflow_id: int, seq: int, descriptor_digest: bytes, previous_hash: bytes) -> Sealed:
    """Give an event its place in a run's chain."""
    body = _ENCODER.encode(
        Receipt(
            workflow_id,
            seq,
            KIND_OF[type(event.detail)],
            event.step,
            event.attempt,
            event.at_ns,
            event.actor,
            descriptor_digest,
            event.input_digest,
            event.output_digest,
            encode_detail(event.detail),
            previous_hash,
        )
    )
    return Sealed(sha256(RECEIPT_PREFIX + body).digest(), body)


def encode_block(block: Block) -> bytes:
    """The canonical bytes of a block header, which are hashed and, behind BLOCK_PREFIX, signed."""
    return _ENCODER.encode(block)


def leaf_hash(receipt_hash: bytes) -> bytes:
    """The Merkle leaf of a receipt (RFC 9162, 2.1.1)."""
    return sha256(LEAF_PREFIX + receipt_hash).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """An inner node of the Merkle tree (RFC 9162, 2.1.1)."""
    return sha256(NODE_PREFIX + left + right).digest()


def merkle_root(receipt_hashes: Iterable[bytes]) -> bytes:
    """The Merkle tree hash of RFC 9162, 2.1.1, over receipt hashes; of no leaves, SHA-256 of nothing.

    Pairing neighbours level by level and carrying an odd last node up gives the same tree as the RFC's recursion, which
    splits at the largest power of two below n.
    """
    level = [sha256(LEAF_PREFIX + one).digest() for one in receipt_hashes]
    if not level:
        return EMPTY_ROOT
    while len(level) > 1:
        paired = [
            sha256(NODE_PREFIX + level[index] + level[index + 1]).digest() for index in range(0, len(level) - 1, 2)
        ]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def inclusion_path(receipt_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of the leaf at `index` (RFC 9162, 2.1.3.1), from the leaf's sibling up. Raises IndexError."""
    if not 0 <= index < len(receipt_hashes):
        raise IndexError(index)
    level = [leaf_hash(one) for one in receipt_hashes]
    path = []
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        paired = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level, index = paired, index // 2
    return path


def root_from_path(receipt_hash: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes:
    """The root that an audit path leads to (RFC 9162, 2.1.3.2). Raises ValueError if the path has the wrong length."""
    if not 0 <= index < count:
        raise ValueError(f"leaf {index} of {count} leaves does not exist")
    node, rest = leaf_hash(receipt_hash), list(path)
    while count > 1:
        if index ^ 1 < count:
            if not rest:
                raise ValueError("the audit path is too short")
            sibling = rest.pop(0)
            node = node_hash(sibling, node) if index % 2 else node_hash(node, sibling)
        index, count = index // 2, (count + 1) // 2
    if rest:
        raise ValueError("the audit path is too long")
    return node


class ChainFault(msgspec.Struct, frozen=True):
    """Something wrong with one run's chain. `what` is corrupt, chain_break, missing, time_reversal or foreign."""

    workflow_id: int
    seq: int
    what: str
    message: str


class ChainState(msgspec.Struct):
    """Where the verification of one run's chain stands; give each receipt in turn to `check`."""

    workflow_id: int
    next_seq: int = 0
    previous_hash: bytes = NO_HASH
    last_at_ns: int = 0

    def check(self, sealed: Sealed) -> list[ChainFault]:
        """What is wrong with the next receipt of the chain; the state moves on in any case."""
        faults: list[ChainFault] = []

        def fault(what: str, message: str) -> None:
            faults.append(ChainFault(self.workflow_id, self.next_seq, what, message))

        if not sealed.is_intact():
            fault("corrupt", f"receipt {self.next_seq}: its bytes do not have the hash that is stored with them")
        try:
            receipt = sealed.receipt()
            receipt.typed_detail()
        except (msgspec.DecodeError, KeyError, UnicodeDecodeError) as error:
            fault("corrupt", f"receipt {self.next_seq}: cannot be decoded: {error}")
            self.next_seq += 1
            self.previous_hash = sealed.hash
            return faults
        if receipt.workflow_id != self.workflow_id:
            fault("foreign", f"receipt {self.next_seq} belongs to workflow wf-{receipt.workflow_id}")
        if receipt.seq > self.next_seq:
            fault("missing", f"receipts {self.next_seq} to {receipt.seq - 1} are missing")
        elif receipt.seq < self.next_seq:
            fault("chain_break", f"receipt {receipt.seq} stands where {self.next_seq} should")
        elif receipt.previous_hash != self.previous_hash:
            fault("chain_break", f"receipt {receipt.seq} does not follow the receipt before it")
        if receipt.at_ns < self.last_at_ns:
            fault("time_reversal", f"receipt {receipt.seq} is older than the one before it")
        self.next_seq = receipt.seq + 1
        self.previous_hash = sealed.hash
        self.last_at_ns = receipt.at_ns
        return faults


def verify_chain(workflow_id: int, receipts: Iterable[Sealed]) -> list[ChainFault]:
    """All that is wrong with a run's receipts, given from the first on. Nothing wrong is the empty list."""
    state = ChainState(workflow_id)
    return [fault for sealed in receipts for fault in state.check(sealed)]
