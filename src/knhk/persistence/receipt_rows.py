"""Rows of receipts: what one commit added to a run, in clear, encrypted, or, once the run was pruned, as hashes alone.

    msgpack array of Sealed                                             in clear
    0xc1 0x03 || count 4 | hash 32 each | encrypted row (cipher.py)     the bodies as a msgpack array, encrypted
    0xc1 0x04 || record 8 | count 4 | hash 32 each                      the run was pruned; see prune_records.py

Hashes are always in clear: the Merkle tree of every block can be checked without the key, and after pruning. They are
bound to the encrypted bodies. A receipt whose body cannot be had is given without one (Sealed.has_body).
"""

from typing import Final

import msgspec

from knhk.domain.errors import EncryptionKeyUnavailable, JournalCorrupt, KnhkError, WorkflowPruned
from knhk.domain.identifier import to_text
from knhk.domain.receipt import LOCKED, Sealed
from knhk.persistence.cipher import Cipher, Sealer

ENCRYPTED: Final = b"\xc1\x03"
HASHES: Final = b"\xc1\x04"
_HEAD: Final = 6
_PRUNED_HEAD: Final = 14
_HASH: Final = 32
_ENCODER: Final = msgspec.msgpack.Encoder()
_SLICE: Final = msgspec.msgpack.Decoder(list[Sealed])
_BODIES: Final = msgspec.msgpack.Decoder(list[bytes])


def encode(receipts: list[Sealed], key: bytes, sealer: Sealer | None) -> bytes:
    """The row."""
    if sealer is None:
        return _ENCODER.encode(receipts)
    prefix = _prefix(ENCRYPTED, [one.hash for one in receipts])
    return prefix + sealer.seal("receipts", key, _ENCODER.encode([one.body for one in receipts]), prefix)


def pruned(receipts: list[Sealed], record: int) -> bytes:
    """The row of a run that was pruned."""
    return HASHES + record.to_bytes(8) + len(receipts).to_bytes(4) + b"".join([one.hash for one in receipts])


def is_pruned(row: bytes) -> bool:
    """Whether nothing but hashes are left."""
    return row[:2] == HASHES


def is_encrypted(row: bytes) -> bool:
    """Whether the bodies are encrypted."""
    return row[:2] == ENCRYPTED


def box_of(row: bytes) -> bytes:
    """The encrypted bodies of an encrypted row."""
    return row[_HEAD + _HASH * int.from_bytes(row[2:_HEAD]) :]


def decode(row: bytes, key: bytes, workflow_id: int, cipher: Cipher) -> list[Sealed]:
    """The receipts of a row; those that were pruned, or whose key is not at hand, without their bodies.

    Raises JournalCorrupt or ReceiptCorrupt, naming the run, if the bytes are not a row.
    """
    try:
        if row[:1] != b"\xc1":
            return _SLICE.decode(row)
        if row[:2] == HASHES:
            return _pruned(row, workflow_id)
        hashes = _hashes(row, workflow_id)
        if cipher.keys is None:
            return [Sealed(one, LOCKED) for one in hashes]
        end = _HEAD + _HASH * len(hashes)
        bodies = _BODIES.decode(cipher.open("receipts", key, row[end:], prefix=row[:end]))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JournalCorrupt(f"receipts of wf-{workflow_id} cannot be decoded: {error}") from error
    if len(bodies) != len(hashes):
        raise JournalCorrupt(f"receipts of wf-{workflow_id}: {len(hashes)} hashes and {len(bodies)} bodies")
    return [Sealed(*pair) for pair in zip(hashes, bodies, strict=True)]


def without_bodies(workflow_id: int, first: Sealed) -> KnhkError:
    """Why the receipts of a run cannot be given, although they are there."""
    if first.pruned_by is not None:
        return WorkflowPruned(
            f"{to_text(workflow_id)} was pruned: the hashes of its receipts are kept, and nothing else"
        )
    return EncryptionKeyUnavailable(
        f"the receipts of {to_text(workflow_id)} are encrypted, and their key was not given"
    )


def _prefix(kind: bytes, hashes: list[bytes]) -> bytes:
    return kind + len(hashes).to_bytes(4) + b"".join(hashes)


def _hashes(row: bytes, workflow_id: int) -> list[bytes]:
    end = _HEAD + _HASH * int.from_bytes(row[2:_HEAD])
    if row[:2] != ENCRYPTED or len(row) < end:
        raise JournalCorrupt(f"receipts of wf-{workflow_id} cannot be decoded: the row begins with {row[:2].hex()}")
    return [row[at : at + _HASH] for at in range(_HEAD, end, _HASH)]


def _pruned(row: bytes, workflow_id: int) -> list[Sealed]:
    count = int.from_bytes(row[_PRUNED_HEAD - 4 : _PRUNED_HEAD])
    if len(row) != _PRUNED_HEAD + _HASH * count:
        raise JournalCorrupt(f"receipts of wf-{workflow_id} cannot be decoded: {count} hashes in {len(row)} bytes")
    record = int.from_bytes(row[2 : _PRUNED_HEAD - 4])
    return [Sealed.pruned(row[at : at + _HASH], record) for at in range(_PRUNED_HEAD, len(row), _HASH)]
