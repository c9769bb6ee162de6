"""The one door through which the journal grows. Only engine/committer and the stores may import this module.

Commit n-1            Commit n                       A store MUST make all of a Commit durable, or none of it,
┌──────────────┐      ┌───────────────────────┐      before `append` returns, and MUST refuse one whose epoch is
│ block h-1    │ ◀──  │ block h  (signed)     │      not the partition's present one, or whose height is not the
└──────────────┘      │ slices of runs a, b…  │      head's plus one.
                      │ payloads, claims,     │
                      │ live marks, timers    │
                      └───────────────────────┘
"""

from typing import Protocol

import msgspec

from knhk.domain.receipt import Block, Sealed, SignedBlock
from knhk.ports.environment import PublicKey
from knhk.ports.journal import Claim


class Payload(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A step's or run's input (slot 0) or output (slot 1), beside the receipt `seq` that holds its digest."""

    seq: int
    slot: int
    raw: bytes


class RunSlice(msgspec.Struct, frozen=True):
    """What one run adds to the journal in one commit: consecutive receipts and their payloads.

    Stores that encrypt take the keys of the run's department for its payloads.
    """

    workflow_id: int
    first_seq: int
    receipts: list[Sealed]
    payloads: list[Payload]
    department: str = ""


class Commit(msgspec.Struct, frozen=True):
    """One group commit.

    `live` and `not_live` set and clear the mark of the runs that a restart must load at once; it is derived from the
    receipts of this very commit and written with them. `timers_set` and `timers_cleared` hold (Unix time in
    ns, workflow id). What the same commit both sets and clears ends cleared. `erased` names runs whose payloads are
    deleted, except those that the same commit adds.
    """

    block: Block
    signed: SignedBlock
    slices: list[RunSlice]
    descriptors: list[tuple[bytes, bytes]]
    claims: list[Claim]
    live: list[int]
    not_live: list[int]
    timers_set: list[tuple[int, int]]
    timers_cleared: list[tuple[int, int]]
    erased: list[int]


class Ownership(msgspec.Struct, frozen=True):
    """The right to append to a partition: the epoch of this owner and the block to build on (None: none yet)."""

    partition: int
    epoch: int
    head: SignedBlock | None


class Append(Protocol):
    """Growing the journal of the partitions that this process owns."""

    async def acquire(self, partition: int) -> Ownership:
        """Become the owner: the partition's epoch grows by one, durably, and appends of older epochs are refused."""
        ...

    async def register_key(self, key: PublicKey) -> None:
        """Keep a signing key's public half with the journal, durably, before the first block that it signs."""
        ...

    async def append(self, commit: Commit) -> None:
        """Make a commit durable.

        Raises:
            Fenced: another owner has the partition; nothing was written.
            DiskFull, StorageUnavailable: it is not known whether it was written. Call `reopen`, look at the journal's
                head, and append the same commit again if its height is not there.
        """
        ...

    async def reopen(self) -> None:
        """Bring the store back after a failed append. Raises StorageUnavailable or DiskFull while it cannot."""
        ...
