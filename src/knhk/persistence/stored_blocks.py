"""The rows of a block as they are stored: what is shipped to other places, and put into a store again.

Rows are neither decompressed nor decrypted. What is encrypted stays so on its way and where it goes, under keys that do
not travel with it. Marks that a restart needs are derived from the kinds of the receipts, so that who imports the rows
needs no key. Reads by key alone, from any thread.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final, get_args

import msgspec

from knhk.domain.errors import JournalCorrupt
from knhk.domain.event import KIND_OF, TERMINAL, Kind, RecordDetail, Submitted, family_of, record_name
from knhk.domain.receipt import Receipt, Sealed, SignedBlock, Slice
from knhk.persistence import receipt_rows
from knhk.persistence.block_rows import decode_signed_block
from knhk.persistence.cipher import Cipher
from knhk.persistence.prune_records import PRUNED as PRUNED_RECORD
from knhk.persistence.rocksdb_keys import CLAIM, DESCRIPTOR, RING_KEY, after, block_key, run_key
from knhk.persistence.rows import Rows
from knhk.ports.journal import record_key

_OF_RECORDS: Final = frozenset(family_of(KIND_OF[detail]) for detail in get_args(RecordDetail))


class BlockRows(msgspec.Struct, frozen=True, array_like=True):
    """One block with everything that was committed with it, as stored rows.

    `receipts` and `payloads` have one row for each slice of the block, a payload row being empty if there is none;
    `claims` are rows, `descriptors` pairs of digest and row. `live` and `not_live` name runs that a restart must load,
    and that it need not; `erased` those whose earlier payloads are deleted.
    """

    block: bytes
    receipts: list[bytes]
    payloads: list[bytes]
    claims: list[bytes]
    descriptors: list[tuple[bytes, bytes]]
    live: list[int]
    not_live: list[int]
    erased: list[int]

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        rows = (self.receipts, self.payloads, self.claims)
        texts = sum(len(row) for _, row in self.descriptors)
        return len(self.block) + texts + sum(len(row) for some in rows for row in some)


class _Kind(msgspec.Struct, array_like=True, gc=False):
    """The first fields of a receipt; the others are passed over."""

    workflow_id: int
    seq: int
    kind: str


_KIND: Final = msgspec.msgpack.Decoder(_Kind)
_RECEIPT: Final = msgspec.msgpack.Decoder(Receipt)


def read_block(rows: Rows, cipher: Cipher, partition: int, height: int, shipped: set[bytes]) -> BlockRows:
    """A block of the journal. Descriptors whose digest is in `shipped` are left out; the others are added to it.

    Raises JournalCorrupt if a row that must be there is not, and what reading the store raises.
    """
    raw = rows.get("blocks", block_key(partition, height))
    if raw is None:
        raise JournalCorrupt(f"block {height} of partition {partition} is gone")
    signed = decode_signed_block(raw, partition, height)
    found = BlockRows(raw, [], [], [], [], [], [], [])
    keys = [run_key(part.workflow_id, part.first_seq) for part in signed.slices]
    receipts, payloads = rows.get_many("receipts", keys), rows.get_many("payloads", keys)
    for part, key, row, beside in zip(signed.slices, keys, receipts, payloads, strict=True):
        if row is None:
            raise JournalCorrupt(f"block {height} of partition {partition}: receipts of wf-{part.workflow_id} are gone")
        found.receipts.append(row)
        found.payloads.append(beside or b"")
        sealed = receipt_rows.decode(row, key, part.workflow_id, cipher)
        _add_context(found, rows, cipher, part, sealed, shipped)
    return found


class StoredRows:
    """Reads committed blocks of an open store, in any thread."""

    def __init__(self, rows: Rows, cipher: Cipher) -> None:
        self._rows, self._cipher = rows, cipher

    def blocks(self, partition: int, first: int, last: int, shipped: set[bytes], most_bytes: int) -> list[BlockRows]:
        """Consecutive blocks, as many as fit into about `most_bytes`, and one at least. Raises as `read_block` does."""
        found: list[BlockRows] = []
        size = 0
        for height in range(first, last + 1):
            found.append(read_block(self._rows, self._cipher, partition, height, shipped))
            size += found[-1].size_bytes
            if size >= most_bytes:
                break
        return found

    def prune_records(self, blocks: Sequence[BlockRows]) -> list[tuple[bytes, bytes]]:
        """The signed records of what was pruned, if a run in these blocks was: without them it would look lost."""
        if not any(receipt_rows.is_pruned(row) for block in blocks for row in block.receipts):
            return []
        return list(self._rows.scan("meta", PRUNED_RECORD, after(PRUNED_RECORD)))

    def keys(self) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """The rows of public keys, and the one that names the key ring (empty: none)."""
        return list(self._rows.scan("keys", b"", None)), self._rows.get("meta", RING_KEY) or b""


def _add_context(
    found: BlockRows, rows: Rows, cipher: Cipher, part: Slice, sealed: Sequence[Sealed], shipped: set[bytes]
) -> None:
    """What belongs to the receipts of a slice: marks, descriptors, claims."""
    live: bool | None = None
    for seq, one in enumerate(sealed, part.first_seq):
        if not one.has_body:
            return  # pruned: it ended long ago; locked: a server always has its keys
        kind = _KIND.decode(one.body).kind
        family = family_of(kind)
        if kind == Kind.PAYLOAD_ERASED:
            found.erased.append(part.workflow_id)
        elif kind in TERMINAL:
            live = _is_child(rows, part.workflow_id, sealed[0] if part.first_seq == 0 else None, cipher)
        elif kind == Kind.WORKFLOW_SETTLED:
            live = False
        elif family not in _OF_RECORDS:
            live = True
        if seq == 0 or family in _OF_RECORDS:
            receipt = _RECEIPT.decode(one.body)
            _add_descriptor(found, rows, receipt.descriptor_digest, shipped)
            if seq == 0 and (digest := _claimed(receipt, family)):
                claim = rows.get("index", CLAIM + digest)
                if claim is not None:
                    found.claims.append(claim)
    if live is not None:
        (found.live if live else found.not_live).append(part.workflow_id)


def _is_child(rows: Rows, workflow_id: int, first: Sealed | None, cipher: Cipher) -> bool:
    """Whether a run is a child: one that has ended is loaded until its parent has been told."""
    if first is None:
        key = run_key(workflow_id, 0)
        row = rows.get("receipts", key)
        first = None if row is None else receipt_rows.decode(row, key, workflow_id, cipher)[0]
    if first is None or not first.has_body:
        return False
    detail = first.receipt().typed_detail()
    return isinstance(detail, Submitted) and bool(detail.child_of.workflow_id)


def _add_descriptor(found: BlockRows, rows: Rows, digest: bytes, shipped: set[bytes]) -> None:
    if not digest or digest in shipped:
        return
    row = rows.get("index", DESCRIPTOR + digest)
    if row is not None:
        shipped.add(digest)
        found.descriptors.append((digest, row))


def _claimed(receipt: Receipt, family: str) -> bytes:
    """The key digest of the claim by which a run or record is found; empty if there is none."""
    detail = receipt.typed_detail()
    if isinstance(detail, Submitted):
        key = detail.idempotency_key
        if detail.child_of.workflow_id:
            return record_key("child", key)
        return sha256(key.encode()).digest() if key else b""
    return record_key(family, record_name(detail)) if isinstance(detail, RecordDetail) else b""


def hashes_of(rows: BlockRows, signed: SignedBlock) -> list[bytes]:
    """The hashes of a block's receipts in leaf order. Raises JournalCorrupt if a row is none."""
    locked = Cipher()
    found: list[bytes] = []
    for part, row in zip(signed.slices, rows.receipts, strict=False):
        key = run_key(part.workflow_id, part.first_seq)
        found += [one.hash for one in receipt_rows.decode(row, key, part.workflow_id, locked)]
    return found
