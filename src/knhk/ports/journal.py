"""Reading the journal: what is committed, by run, by block and by what must go on after a restart."""

from hashlib import sha256
from typing import Protocol

import msgspec

from knhk.domain.receipt import Sealed, SignedBlock
from knhk.ports.environment import PublicKey


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """An idempotency key in use: `key_digest` is SHA-256 of the key, `request_digest` of the request's bytes."""

    key_digest: bytes
    workflow_id: int
    request_digest: bytes


def record_key(kind: str, name: str) -> bytes:
    """The digest under which the claim of a record is kept: of a chain that is no run, found by kind and name.

    Its first byte is one that no client can send in an idempotency key.
    """
    return sha256(b"\x00" + kind.encode() + b"\x00" + name.encode()).digest()


class Journal(Protocol):
    """Committed data only: a reader MUST never see part of a commit.

    A method MUST raise Corrupt if the store finds that the bytes are not those that were written.
    """

    async def head(self, partition: int) -> SignedBlock | None:
        """The newest block of the partition, or None before the first."""
        ...

    async def blocks(self, partition: int, from_height: int, limit: int) -> list[SignedBlock]:
        """Up to `limit` blocks from `from_height` on, in order of height."""
        ...

    async def block_receipts(self, signed: SignedBlock) -> list[Sealed]:
        """The receipts of a block in leaf order; shorter than the block's count if some are missing."""
        ...

    async def receipts(self, workflow_id: int, from_seq: int = 0) -> list[Sealed]:
        """The receipts of a run with `seq >= from_seq`, in order; empty if there are none."""
        ...

    async def payload(self, workflow_id: int, seq: int, slot: int) -> bytes | None:
        """The payload beside a receipt (slot 0 input, 1 output), or None: there was none, or it was erased."""
        ...

    async def descriptor(self, digest: bytes) -> bytes | None:
        """The bytes of a descriptor that was submitted."""
        ...

    async def claim(self, key_digest: bytes) -> Claim | None:
        """Which run an idempotency key stands for."""
        ...

    async def live(self, partition: int) -> list[int]:
        """The runs to load at start, oldest first."""
        ...

    async def timers(self, partition: int, until_ns: int, limit: int) -> list[tuple[int, int]]:
        """Up to `limit` timers (Unix time in ns, workflow id) at or before `until_ns`, earliest first."""
        ...

    async def keys(self) -> list[PublicKey]:
        """The public keys that were registered, oldest first."""
        ...
