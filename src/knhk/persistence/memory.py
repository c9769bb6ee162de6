"""The store in memory: the oracle of the tests, and the store of runs that need not outlive their process.

It keeps every rule of the ports in the plainest way, so that the other stores can be compared with it. A fault injector
makes it fail as a disk does: before a commit is in, or after it is in but before that is known.
"""

import heapq
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from knhk.domain.errors import Conflict, Corrupt, DiskFull, InvalidConfiguration, StorageUnavailable
from knhk.domain.histogram import Histogram
from knhk.domain.identifier import partition_of
from knhk.domain.receipt import Sealed, SignedBlock
from knhk.persistence.fencing import Tip, refuse_unless_next
from knhk.persistence.prune_records import SignedRecord
from knhk.ports.append import Commit, Ownership
from knhk.ports.environment import PublicKey
from knhk.ports.journal import Claim

Stage = Literal["before", "after", "reopen"]
Faults = Callable[[Stage, Commit | None], None]
"""Called before a commit is in, after it is in, and at each `reopen`; raises StorageUnavailable or DiskFull at will."""

STATE_FILE: Final = "memory.msgpack"


class State(msgspec.Struct):
    """Everything that is stored. `payloads` has (workflow id, seq, slot) as key, `live` and `timers` are sets."""

    epochs: dict[int, int] = {}
    blocks: dict[int, list[SignedBlock]] = {}
    receipts: dict[int, list[Sealed]] = {}
    payloads: dict[int, dict[tuple[int, int], bytes]] = {}
    descriptors: dict[bytes, bytes] = {}
    claims: dict[bytes, Claim] = {}
    live: set[int] = set()
    timers: set[tuple[int, int]] = set()
    keys: dict[str, PublicKey] = {}
    cursors: dict[str, int] = {}
    rows: dict[str, dict[bytes, bytes]] = {}


class MemoryStore:
    """Append, Journal, Projections and Storage over plain dictionaries."""

    def __init__(self, state: State | None = None, faults: Faults | None = None) -> None:
        self._state = State() if state is None else state
        self._faults = faults
        self._tips: dict[int, Tip] = {}
        self._failed = False
        self._closed = False
        self._appended = 0

    @classmethod
    def load(cls, checkpoint: Path) -> "MemoryStore":
        """The store that `checkpoint` wrote. Raises InvalidConfiguration if there is none."""
        try:
            raw = (checkpoint / STATE_FILE).read_bytes()
        except FileNotFoundError as error:
            raise InvalidConfiguration(f"{checkpoint} holds no checkpoint of a memory store") from error
        return cls(msgspec.msgpack.decode(raw, type=State))

    def survivor(self, faults: Faults | None = None) -> "MemoryStore":
        """Another store with a copy of the data: what a process finds that starts after this one was killed."""
        return MemoryStore(msgspec.msgpack.decode(msgspec.msgpack.encode(self._state), type=State), faults)

    # -- Append

    async def acquire(self, partition: int) -> Ownership:
        self._ready()
        epoch = self._state.epochs.get(partition, 0) + 1
        self._state.epochs[partition] = epoch
        return Ownership(partition, epoch, await self.head(partition))

    async def register_key(self, key: PublicKey) -> None:
        self._ready()
        self._state.keys[key.key_id] = key

    async def append(self, commit: Commit) -> None:
        self._ready()
        partition = commit.block.partition
        refuse_unless_next(commit, self._state.epochs.get(partition, 0), self._tip(partition))
        self._meet_fault("before", commit)
        self._apply(commit)
        self._tips[partition] = Tip(commit.block.height, commit.signed.hash())
        self._appended += 1
        self._meet_fault("after", commit)

    async def reopen(self) -> None:
        if self._faults is not None:
            self._faults("reopen", None)
        self._failed = False

    def _apply(self, commit: Commit) -> None:
        state = self._state
        state.blocks.setdefault(commit.block.partition, []).append(commit.signed)
        for workflow_id in commit.erased:
            state.payloads.pop(workflow_id, None)
        for part in commit.slices:
            state.receipts.setdefault(part.workflow_id, []).extend(part.receipts)
            for payload in part.payloads:
                state.payloads.setdefault(part.workflow_id, {})[payload.seq, payload.slot] = payload.raw
        state.descriptors.update(commit.descriptors)
        state.claims.update((claim.key_digest, claim) for claim in commit.claims)
        state.live = (state.live | set(commit.live)) - set(commit.not_live)
        state.timers.update(commit.timers_set)
        state.timers.difference_update(commit.timers_cleared)

    def _tip(self, partition: int) -> Tip | None:
        if partition not in self._tips and (blocks := self._state.blocks.get(partition)):
            self._tips[partition] = Tip(len(blocks) - 1, blocks[-1].hash())
        return self._tips.get(partition)

    def _meet_fault(self, stage: Stage, commit: Commit) -> None:
        if self._faults is None:
            return
        try:
            self._faults(stage, commit)
        except (StorageUnavailable, DiskFull):
            self._failed = True
            raise

    def _ready(self) -> None:
        if self._closed:
            raise StorageUnavailable("the store is closed")
        if self._failed:
            raise StorageUnavailable("an append failed; the store must be reopened first")

    # -- Journal

    async def head(self, partition: int) -> SignedBlock | None:
        blocks = self._state.blocks.get(partition)
        return blocks[-1] if blocks else None

    async def blocks(self, partition: int, from_height: int, limit: int) -> list[SignedBlock]:
        return self._state.blocks.get(partition, [])[from_height : from_height + limit]

    async def block_receipts(self, signed: SignedBlock) -> list[Sealed]:
        return _receipts_of(self._state, signed)

    async def receipts(self, workflow_id: int, from_seq: int = 0) -> list[Sealed]:
        return self._state.receipts.get(workflow_id, [])[from_seq:]

    async def payload(self, workflow_id: int, seq: int, slot: int) -> bytes | None:
        return self._state.payloads.get(workflow_id, {}).get((seq, slot))

    async def descriptor(self, digest: bytes) -> bytes | None:
        return self._state.descriptors.get(digest)

    async def claim(self, key_digest: bytes) -> Claim | None:
        return self._state.claims.get(key_digest)

    async def live(self, partition: int) -> list[int]:
        return sorted(one for one in self._state.live if partition_of(one) == partition)

    async def timers(self, partition: int, until_ns: int, limit: int) -> list[tuple[int, int]]:
        due = (one for one in self._state.timers if one[0] <= until_ns and partition_of(one[1]) == partition)
        return heapq.nsmallest(limit, due)

    async def keys(self) -> list[PublicKey]:
        return sorted(self._state.keys.values(), key=lambda key: (key.created_at_ns, key.key_id))

    # -- Projections

    async def cursor(self, fold: str) -> int:
        return self._state.cursors.get(fold, -1)

    async def store(self, fold: str, rows: dict[bytes, bytes | None], cursor: int) -> None:
        self._ready()
        stored = self._state.rows.setdefault(fold, {})
        for key, value in rows.items():
            if value is None:
                stored.pop(key, None)
            else:
                stored[key] = value
        self._state.cursors[fold] = cursor

    async def row(self, fold: str, key: bytes) -> bytes | None:
        return self._state.rows.get(fold, {}).get(key)

    async def rows(
        self, fold: str, prefix: bytes, *, before: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        rows = self._state.rows.get(fold, {})
        keys = sorted(key for key in rows if key.startswith(prefix))
        end = len(keys) if before is None else bisect_left(keys, before)
        return [(key, rows[key]) for key in reversed(keys[max(0, end - limit) : end])]

    # -- Storage

    async def checkpoint(self, target: Path) -> int:
        return self._write_checkpoint(target)

    def _write_checkpoint(self, target: Path) -> int:
        if target.exists():
            raise Conflict(f"{target} exists already; a checkpoint is written to a new directory")
        unfinished = target.with_name(target.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        (unfinished / STATE_FILE).write_bytes(msgspec.msgpack.encode(self._state))
        unfinished.rename(target)
        return len(self._state.blocks.get(0, [])) - 1

    def free_bytes(self) -> int:
        return 1 << 62

    def statistics(self) -> dict[str, float]:
        return {"appends_total": float(self._appended)}

    def histograms(self) -> dict[str, Histogram]:
        return {}

    async def close(self) -> None:
        self._closed = True

    def scanner(self) -> "MemoryScanner":
        """Plain iterators over everything, for offline verification."""
        return MemoryScanner(self._state)


class MemoryScanner:
    """JournalScanner over the dictionaries."""

    def __init__(self, state: State) -> None:
        self._state = state

    def partitions(self) -> list[int]:
        return sorted(self._state.blocks)

    def scan_receipts(self, partition: int | None = None) -> Iterator[tuple[int, list[Sealed]]]:
        for workflow_id in sorted(self._state.receipts, key=lambda one: (partition_of(one), one)):
            if partition is None or partition_of(workflow_id) == partition:
                yield workflow_id, list(self._state.receipts[workflow_id])

    def scan_blocks(self, partition: int | None = None) -> Iterator[SignedBlock]:
        for one in self.partitions():
            if partition is None or one == partition:
                yield from self._state.blocks[one]

    def scan_block_receipts(self, partition: int) -> Iterator[tuple[SignedBlock, list[Sealed] | Corrupt]]:
        for signed in self.scan_blocks(partition):
            yield signed, _receipts_of(self._state, signed)

    def scan_payloads(self, partition: int | None = None) -> Iterator[tuple[int, int, int, bytes]]:
        for workflow_id in sorted(self._state.payloads, key=lambda one: (partition_of(one), one)):
            if partition is None or partition_of(workflow_id) == partition:
                for (seq, slot), raw in sorted(self._state.payloads[workflow_id].items()):
                    yield workflow_id, seq, slot, raw

    def prune_records(self) -> Iterator[SignedRecord]:
        yield from ()  # nothing is pruned here

    def verify_files(self) -> int:
        return 0


def _receipts_of(state: State, signed: SignedBlock) -> list[Sealed]:
    return [
        sealed
        for part in signed.slices
        for sealed in state.receipts.get(part.workflow_id, [])[part.first_seq : part.first_seq + part.count]
    ]
