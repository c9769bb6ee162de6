"""Records of what was pruned: signed, so that receipts which were lost cannot be passed off for such that were pruned.

meta 'p' | partition 2 | number 8     msgpack [body, signature]

body      = msgpack array of the PruneRecord's fields
signature = Ed25519(0x07 || body), by a key of the journal
digest    = SHA-256 over (workflow id 8 | hash of its last receipt 32) of the record's runs, ascending by id
"""

from typing import Any, Final

import msgspec

from knhk.domain.errors import JournalCorrupt
from knhk.domain.times import rfc3339
from knhk.persistence.rocksdb_keys import BLOCK
from knhk.ports.environment import Signer

PRUNED: Final = b"p"
RECORD_PREFIX: Final = b"\x07"
_ENCODER: Final = msgspec.msgpack.Encoder()


class PruneRecord(msgspec.Struct, frozen=True, array_like=True):
    """What was pruned at once. Times are Unix time in ns. `archive` is the file that has the runs; empty: none has."""

    partition: int
    number: int
    at_ns: int
    cutoff_ns: int
    workflows: int
    receipts: int
    digest: bytes
    archive: str
    archive_sha256: bytes
    node_id: str
    key_id: str

    def sentence(self) -> str:
        """For people."""
        kept = f"archived in {self.archive}" if self.archive else "not archived"
        return (
            f"{self.workflows} workflow(s) that ended before {rfc3339(self.cutoff_ns)} were pruned at "
            f"{rfc3339(self.at_ns)}: {kept}"
        )

    def shown(self) -> dict[str, Any]:
        """As JSON-like data."""
        return {
            "record": self.number,
            "at": rfc3339(self.at_ns),
            "ended_before": rfc3339(self.cutoff_ns),
            "workflows": self.workflows,
            "receipts": self.receipts,
            "archive": self.archive or None,
        }


class SignedRecord(msgspec.Struct, frozen=True, array_like=True):
    """A record's bytes and their signature."""

    body: bytes
    signature: bytes

    @classmethod
    def by(cls, record: PruneRecord, signer: Signer) -> "SignedRecord":
        """Signed by a node's key."""
        body = _ENCODER.encode(record)
        return cls(body, signer.sign(RECORD_PREFIX + body))

    def record(self) -> PruneRecord:
        """Decoded. Raises msgspec.DecodeError."""
        return msgspec.msgpack.decode(self.body, type=PruneRecord)

    def encode(self) -> bytes:
        """The row."""
        return _ENCODER.encode(self)


def record_key(partition: int, number: int) -> bytes:
    """The key of a record in `meta`."""
    return PRUNED + BLOCK.pack(partition, number)


def decode_record(row: bytes) -> SignedRecord:
    """The record in a row. Raises JournalCorrupt if the bytes are none."""
    try:
        signed = msgspec.msgpack.decode(row, type=SignedRecord)
        signed.record()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JournalCorrupt(f"a record of pruned workflows cannot be decoded: {error}") from error
    return signed


def digest_entry(workflow_id: int, last_hash: bytes) -> bytes:
    """What a run adds to the digest of its record."""
    return workflow_id.to_bytes(8) + last_hash
