"""The journal on RocksDB, embedded: the default store. docs/persistence.md describes it for operators.

A commit is one write batch: written to RocksDB's log without sync on the event loop's thread (rocksdict holds the
interpreter's lock there in any case), then synced in a thread of its own. `append` returns when it is synced; until
then readers do not see it. Rows are laid out in rocksdb_keys.py, opening and its checks are in rocksdb_opening.py.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
from rocksdict import WriteBatch

from knhk.domain.errors import (
    Conflict,
    DataDirectoryInUse,
    JournalCorrupt,
    KnhkError,
    StorageUnavailable,
)
from knhk.domain.histogram import Histogram
from knhk.domain.receipt import Sealed, SignedBlock
from knhk.persistence import codec, receipt_rows
from knhk.persistence.block_rows import decode_signed_block
from knhk.persistence.cipher import Cipher
from knhk.persistence.codec import PayloadCodec
from knhk.persistence.commit_batch import batch_of
from knhk.persistence.erasing import keys_of_erased, settle
from knhk.persistence.fencing import Tip, refuse_unless_next
from knhk.persistence.head_witness import HeadWitness
from knhk.persistence.ring_binding import check_ring, note_ring
from knhk.persistence.rocksdb_checkpoint import write_checkpoint
from knhk.persistence.rocksdb_database import Counters, Database, log_bytes
from knhk.persistence.rocksdb_errors import Stalled, translated
from knhk.persistence.rocksdb_keys import (
    CLAIM,
    DESCRIPTOR,
    LIVE,
    MAX_SEQ,
    NUMBER,
    PARTITION,
    RING_KEY,
    RUN,
    RUN_PREFIX,
    TIMER,
    after,
    block_key,
    epoch_key,
    run_key,
)
from knhk.persistence.rocksdb_opening import open_database
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.persistence.rocksdb_rows import ProjectionRows
from knhk.persistence.row_scan import RowScanner
from knhk.persistence.rows import Changes, Found, Rows
from knhk.persistence.stored_blocks import StoredRows
from knhk.persistence.wal_writer import WalWriter
from knhk.ports.append import Commit, Ownership
from knhk.ports.environment import PublicKey
from knhk.ports.journal import Claim
from knhk.ports.keys import RunPath

STALL_PAUSE_S: Final = 0.002
_ENCODER: Final = msgspec.msgpack.Encoder()
_CLAIM: Final = msgspec.msgpack.Decoder(Claim)
_KEY: Final = msgspec.msgpack.Decoder(PublicKey)


class _Unsynced(msgspec.Struct, frozen=True):
    """What a commit that is written and not yet synced adds; readers must not see it."""

    partition: int
    tip: Tip
    first_seqs: dict[int, int]
    claims: set[bytes]


class RocksDbStore(ProjectionRows):
    """Append, Journal, Projections and Storage, all on one event loop; a scanner may be used in another thread."""

    def __init__(
        self, path: Path, options: StoreOptions, database: Database, heads: dict[int, Tip], counters: Counters
    ) -> None:
        self._path = path
        self._options = options
        self._counters = counters
        self._codec = PayloadCodec(False)
        self.cipher = Cipher()
        self._recent_descriptors: set[bytes] | None = None
        self._read_only = True
        self._attach(database, heads)

    @classmethod
    def open(
        cls,
        path: Path,
        options: StoreOptions | None = None,
        compression: bool = True,
        read_only: bool = False,
        cipher: Cipher | None = None,
    ) -> "RocksDbStore":
        """Open a data directory; unless it is `read_only`, make it if there is none.

        Blocks for as long as RocksDB reads its log. Raises what rocksdb_opening.open_database says.
        """
        options = StoreOptions() if options is None else options
        counters = Counters()
        database, heads = open_database(path, options, counters, read_only=read_only)
        store = cls(path, options, database, heads, counters)
        store._codec = PayloadCodec(compression)
        store._read_only = read_only
        store.cipher = cipher or store.cipher
        try:
            check_ring(database.get("meta", RING_KEY), path, store.cipher.keys, must_have=not read_only)
            if store.cipher.encrypting:
                store._note_ring()
        except BaseException:
            database.close()
            raise
        if not read_only:
            store._start_writing(heads)
        return store

    async def note_ring(self) -> None:
        """Remember in the directory which key ring encrypts it, before the first row that a generation encrypts."""
        self._note_ring()

    def _note_ring(self) -> None:
        if self.cipher.keys is not None:
            note_ring(self._database, self.cipher.keys)

    def _attach(self, database: Database, heads: dict[int, Tip]) -> None:
        self._database = database
        self._heads = dict(heads)  # synced
        self._tips = dict(heads)  # written
        self._epochs: dict[int, int] = {}
        self._unsynced: list[_Unsynced] = []
        self._failure: KnhkError | None = None
        self._writer: WalWriter | None = None
        self._witness: HeadWitness | None = None

    def _start_writing(self, heads: dict[int, Tip]) -> None:
        try:
            self._witness = HeadWitness(self._path, heads)
        except OSError as error:
            self._database.close()
            raise translated(error, self._path, "writing journal.head") from error
        self._writer = WalWriter(self._database.sync)

    # -- Append

    async def acquire(self, partition: int) -> Ownership:
        self._require_writer()
        epoch = self._epoch(partition) + 1
        await self._write_durably("meta", epoch_key(partition), NUMBER.pack(epoch))
        self._epochs[partition] = epoch
        return Ownership(partition, epoch, await self.head(partition))

    def epoch_of(self, partition: int) -> int:
        """The epoch of the partition's last owner, 0 if it never had one."""
        return self._epoch(partition)

    async def raise_epoch(self, partition: int, epoch: int) -> None:
        """Have the next owner's epoch be greater than this one, which was given out elsewhere."""
        self._require_writer()
        if self._epoch(partition) < epoch:
            await self._write_durably("meta", epoch_key(partition), NUMBER.pack(epoch))
            self._epochs.pop(partition, None)

    async def register_key(self, key: PublicKey) -> None:
        self._require_writer()
        await self._write_durably("keys", key.key_id.encode(), _ENCODER.encode(key))

    async def append(self, commit: Commit) -> None:
        partition = commit.block.partition

        def batch() -> WriteBatch:
            refuse_unless_next(commit, self._epoch(partition), self._tips.get(partition))
            return batch_of(commit, self._database, self._codec, self.cipher.sealer())

        self._require_writer()
        doomed = self._intend_erasure(commit)
        await self._write(batch)
        tip = Tip(commit.block.height, commit.signed.hash())
        self._tips[partition] = tip
        added = _Unsynced(
            partition,
            tip,
            {part.workflow_id: part.first_seq for part in reversed(commit.slices)},
            {claim.key_digest for claim in commit.claims},
        )
        self._unsynced.append(added)
        if self._recent_descriptors is not None:
            self._recent_descriptors.update(digest for digest, _ in commit.descriptors)
        await self._synced(added)
        if doomed and self.cipher.keys is not None:  # before anybody is told that it is erased
            self.cipher.keys.settle_erasure(doomed, destroy=True)

    def _intend_erasure(self, commit: Commit) -> list[RunPath]:
        """Note, before the commit, the keys that it destroys; a crash after it then does not forget them."""
        if not commit.erased or self.cipher.keys is None:
            return []
        doomed = keys_of_erased(commit, self._database)
        self.cipher.keys.intend_erasure(doomed)
        return doomed

    async def settle_erasures(self) -> None:
        """Destroy the keys whose erasure was committed before a crash; drop the notes of those that were not."""
        if self.cipher.keys is not None:
            settle(self.cipher.keys, self._database)

    async def _write(self, batch: Callable[[], WriteBatch]) -> None:
        """Write, and while RocksDB cannot keep up with its memtables, wait and write again."""
        while True:
            try:
                self._database.write(batch())
                return
            except Stalled:
                paused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_later(STALL_PAUSE_S, _resolve, paused)
                await paused
                self._require_writer()
            except KnhkError as error:
                if not isinstance(error, Conflict):
                    self._failure = error
                raise

    async def _write_durably(self, family: str, key: bytes, value: bytes) -> None:
        def batch() -> WriteBatch:
            made = WriteBatch(raw_mode=True)
            made.put(key, value, self._database.handles[family])
            return made

        await self._write(batch)
        await self._synced(None)

    def _synced(self, added: _Unsynced | None) -> "asyncio.Future[None]":
        """Have the log synced; what is waited for goes on even if the waiting task is cancelled."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: KnhkError | None) -> None:
            if error is not None:
                self._failure = error
            elif added is not None and added in self._unsynced:
                self._note(added)  # Before anybody is told: the witness knows all that was acknowledged.
                self._unsynced.remove(added)
                self._heads[added.partition] = added.tip
                self._counters.commits_total += 1
            if not future.done():
                _resolve(future) if error is None else future.set_exception(error)

        self._require_writer().submit(done)
        return future

    def _note(self, added: _Unsynced) -> None:
        try:
            if self._witness is not None:
                self._witness.note(added.partition, added.tip)
        except OSError:
            self._counters.witness_errors_total += 1

    def _require_writer(self) -> WalWriter:
        if self._failure is not None:
            raise StorageUnavailable(f"the store must be reopened first: {self._failure}") from self._failure
        if self._writer is None:
            raise StorageUnavailable(f"{self._path} is {'open for reading only' if self._read_only else 'closed'}")
        return self._writer

    def _epoch(self, partition: int) -> int:
        if partition not in self._epochs:
            stored = self._database.get("meta", epoch_key(partition))
            self._epochs[partition] = 0 if stored is None else NUMBER.unpack(stored)[0]
        return self._epochs[partition]

    async def reopen(self) -> None:
        if self._read_only:
            raise StorageUnavailable(f"{self._path} is open for reading only")
        self._failure = self._failure or StorageUnavailable(f"{self._path} is being reopened")
        await asyncio.get_running_loop().run_in_executor(None, self._reopen)
        await self.settle_erasures()  # else a commit that erased could be acknowledged before its keys are destroyed

    def _reopen(self) -> None:
        self._release()
        try:
            database, heads = open_database(self._path, self._options, self._counters, read_only=False)
        except DataDirectoryInUse as error:
            raise StorageUnavailable(f"{self._path} cannot be reopened while it is being scanned") from error
        except KnhkError:
            with contextlib.suppress(KnhkError):  # so that reads go on, for example while the disk is full
                self._database = open_database(self._path, self._options, self._counters, read_only=True)[0]
            raise
        self._attach(database, heads)
        self._start_writing(heads)
        self._counters.reopens_total += 1

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.stop()
            self._writer = None
        if self._witness is not None:
            self._witness.close()
            self._witness = None
        self._database.close()

    # -- Journal

    def _hidden_from(self, workflow_id: int) -> int:
        """The first seq of the run that is written and not synced."""
        return min((one.first_seqs.get(workflow_id, MAX_SEQ) for one in self._unsynced), default=MAX_SEQ)

    async def head(self, partition: int) -> SignedBlock | None:
        tip = self._heads.get(partition)
        if tip is None:
            return None
        raw = self._database.get("blocks", block_key(partition, tip.height))
        if raw is None:
            raise JournalCorrupt(f"{self._path}: block {tip.height} of partition {partition} is gone")
        return decode_signed_block(raw, partition, tip.height)

    async def blocks(self, partition: int, from_height: int, limit: int) -> list[SignedBlock]:
        tip = self._heads.get(partition)
        if tip is None:
            return []
        end = block_key(partition, tip.height + 1)
        rows = islice(self._database.scan("blocks", block_key(partition, from_height), end), limit)
        return [decode_signed_block(value, partition, from_height + at) for at, (_, value) in enumerate(rows)]

    async def block_receipts(self, signed: SignedBlock) -> list[Sealed]:
        found: list[Sealed] = []
        for part in signed.slices:
            if self._hidden_from(part.workflow_id) <= part.first_seq:
                continue
            key = run_key(part.workflow_id, part.first_seq)
            raw = self._database.get("receipts", key)
            if raw is not None:
                found += receipt_rows.decode(raw, key, part.workflow_id, self.cipher)[: part.count]
        return found

    async def receipts(self, workflow_id: int, from_seq: int = 0) -> list[Sealed]:
        hidden = self._hidden_from(workflow_id)
        start = run_key(workflow_id, 0)
        if from_seq > 0:
            start = next(
                iter(self._database.scan_back("receipts", start, run_key(workflow_id, from_seq + 1))), (start,)
            )[0]
        found: list[Sealed] = []
        skipped = 0
        for key, value in self._database.scan("receipts", start, run_key(workflow_id, hidden)):
            if not found:
                skipped = max(0, from_seq - RUN.unpack(key)[2])
            found += receipt_rows.decode(value, key, workflow_id, self.cipher)
        if found and not found[0].has_body:
            raise receipt_rows.without_bodies(workflow_id, found[0])
        return found[skipped:] if skipped else found

    async def payload(self, workflow_id: int, seq: int, slot: int) -> bytes | None:
        if seq >= self._hidden_from(workflow_id):
            return None
        rows = self._database.scan_back("payloads", run_key(workflow_id, 0), run_key(workflow_id, seq + 1))
        for key, value in rows:
            for payload in codec.decode(self.cipher.open("payloads", key, value, workflow_id=workflow_id), workflow_id):
                if payload.seq == seq and payload.slot == slot:
                    return payload.raw
            return None
        return None

    async def descriptor(self, digest: bytes) -> bytes | None:
        key = DESCRIPTOR + digest
        raw = self._database.get("index", key)
        return None if raw is None else self.cipher.open("index", key, raw)

    async def claim(self, key_digest: bytes) -> Claim | None:
        raw = self._database.get("index", CLAIM + key_digest)
        if raw is None or any(key_digest in one.claims for one in self._unsynced):
            return None
        return _CLAIM.decode(raw)

    async def live(self, partition: int) -> list[int]:
        prefix = LIVE + PARTITION.pack(partition)
        rows = self._database.scan("index", prefix, after(prefix))
        return [RUN_PREFIX.unpack(key[1:])[1] for key, _ in rows]

    async def timers(self, partition: int, until_ns: int, limit: int) -> list[tuple[int, int]]:
        rows = self._database.scan("timers", PARTITION.pack(partition), TIMER.pack(partition, until_ns + 1, 0))
        return [TIMER.unpack(key)[1:] for key, _ in islice(rows, limit)]

    async def keys(self) -> list[PublicKey]:
        found = [_KEY.decode(value) for _, value in self._database.scan("keys", b"", None)]
        return sorted(found, key=lambda key: (key.created_at_ns, key.key_id))

    # -- Storage

    async def checkpoint(self, target: Path) -> int:
        heads = dict(self._heads)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, write_checkpoint, self._database, target, heads, self._options)

    async def change(self, build: Callable[[Rows, Changes], None], *, durable: bool = False) -> None:
        """Care of the store itself: write what `build` makes of what is there now, all of it or nothing.

        `build` runs in one turn of the event loop with the write, so that nothing changes in between.
        """

        def batch() -> WriteBatch:
            made, changes = WriteBatch(raw_mode=True), Changes()
            build(self._database, changes)
            for (family, key), row in changes.rows.items():
                if row is None:
                    made.delete(key, self._database.handles[family])
                else:
                    made.put(key, row, self._database.handles[family])
            return made

        self._require_writer()
        await self._write(batch)
        if durable:
            await self._synced(None)

    async def compact(self, families: Sequence[str]) -> None:
        """Write the rows of column families anew, so that what was replaced or deleted leaves the disk."""
        await asyncio.get_running_loop().run_in_executor(None, self._database.compact, families)

    async def look(self, read: Callable[[Rows], Found]) -> Found:
        return read(self._database)

    def watch_descriptors(self) -> set[bytes] | None:
        self._recent_descriptors = set()
        return self._recent_descriptors

    def forget_descriptors(self) -> None:
        self._recent_descriptors = None

    def free_bytes(self) -> int:
        try:
            status = os.statvfs(self._path)
        except OSError as error:
            raise translated(error, self._path, "measuring free space") from error
        return status.f_bavail * status.f_frsize

    def statistics(self) -> dict[str, float]:
        figures = self._counters.figures()
        with contextlib.suppress(StorageUnavailable, OSError):
            figures |= self._database.properties()
            figures["wal_bytes"] = float(log_bytes(self._path))
        figures["unsynced_commits"] = float(len(self._unsynced))
        return figures

    def histograms(self) -> dict[str, Histogram]:
        return {"fsync_seconds": self._counters.fsync_seconds}

    async def close(self) -> None:
        if self._writer is not None and self._failure is None:
            with contextlib.suppress(KnhkError):
                await self._synced(None)
        self._release()

    def stored_rows(self) -> StoredRows:
        """What is shipped to other places; for one use, since a reopened store has another database."""
        return StoredRows(self._database, self.cipher)

    def scanner(self) -> RowScanner:
        """Plain iterators over everything, for offline verification; close the store only when they are done."""
        return RowScanner(self._database, self.cipher)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
