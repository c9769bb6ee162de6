"""Commits for tests: receipts that are sealed and chained, blocks that are chained, and nothing else of the engine."""

from collections.abc import Iterable, Sequence
from hashlib import sha256

import msgspec

from knhk.domain import receipt
from knhk.domain.event import Event, StepCompleted
from knhk.domain.identifier import compose
from knhk.domain.receipt import Block, Sealed, SignedBlock, Slice
from knhk.ports.append import Commit, Ownership, Payload, RunSlice
from knhk.ports.journal import Claim

AT_MS = 1_767_225_600_000
DESCRIPTOR_DIGEST = sha256(b"descriptor").digest()


def workflow_id(number: int, partition: int = 0) -> int:
    """The id of the `number`-th run of a partition; greater numbers are younger."""
    return compose(AT_MS + number // 4096, partition, number % 4096)


class CommitBuilder:
    """The journal's side of a committer: knows each run's chain and the chain of blocks of one partition."""

    def __init__(self, ownership: Ownership) -> None:
        self.partition = ownership.partition
        self.epoch = ownership.epoch
        head = None if ownership.head is None else ownership.head.block()
        self.height = -1 if head is None else head.height
        self.offset = 0 if head is None else head.first_offset + head.count
        self.block_hash = receipt.NO_HASH if ownership.head is None else ownership.head.hash()
        self.chains: dict[int, list[Sealed]] = {}

    def slice(self, run: int, count: int = 1, payloads: Iterable[Payload] = ()) -> RunSlice:
        """The next `count` receipts of a run."""
        chain = self.chains.setdefault(run, [])
        first = len(chain)
        for seq in range(first, first + count):
            event = Event(at_ns=AT_MS * 1_000_000 + seq, detail=StepCompleted(started_at_ns=seq), step="s", attempt=1)
            previous = chain[-1].hash if chain else receipt.NO_HASH
            chain.append(receipt.seal(event, run, seq, DESCRIPTOR_DIGEST, previous))
        return RunSlice(run, first, chain[first:], list(payloads))

    def commit(
        self,
        slices: Sequence[RunSlice] = (),
        *,
        descriptors: Sequence[tuple[bytes, bytes]] = (),
        claims: Sequence[Claim] = (),
        live: Sequence[int] = (),
        not_live: Sequence[int] = (),
        timers_set: Sequence[tuple[int, int]] = (),
        timers_cleared: Sequence[tuple[int, int]] = (),
        erased: Sequence[int] = (),
    ) -> Commit:
        """The next commit; the builder goes on from it, so append it before the next one."""
        hashes = [sealed.hash for part in slices for sealed in part.receipts]
        self.height += 1
        block = Block(
            self.partition,
            self.epoch,
            self.height,
            self.offset,
            len(hashes),
            receipt.merkle_root(hashes),
            self.block_hash,
            AT_MS * 1_000_000 + self.height,
            "node-1",
            "key-1",
        )
        body = receipt.encode_block(block)
        parts = tuple(Slice(part.workflow_id, part.first_seq, len(part.receipts)) for part in slices)
        signed = SignedBlock(body, sha256(body).digest() * 2, parts)
        self.offset += len(hashes)
        self.block_hash = signed.hash()
        return Commit(
            block=block,
            signed=signed,
            slices=list(slices),
            descriptors=list(descriptors),
            claims=list(claims),
            live=list(live),
            not_live=list(not_live),
            timers_set=list(timers_set),
            timers_cleared=list(timers_cleared),
            erased=list(erased),
        )


def altered(commit: Commit, **changes: object) -> Commit:
    """The commit with another block header, which no longer fits its signature: for what a store must refuse."""
    return msgspec.structs.replace(commit, block=msgspec.structs.replace(commit.block, **changes))
