"""The journal on PostgreSQL: shared state of several nodes. docs/postgres.md describes it for operators.

Each statement is one transaction. A commit is one statement (postgres_commit.py); its row of `partitions` is lock,
fence and head in one: a commit of an older epoch, or one that is not the next, changes nothing. What is read is read
from the tables, by whichever node; nothing is cached.
"""

import asyncio
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Final

import msgspec

from knhk.domain.errors import Fenced, JournalCorrupt, KnhkError
from knhk.domain.histogram import SHORT_S, Histogram
from knhk.domain.identifier import partition_of
from knhk.domain.receipt import BLOCK_PREFIX, NO_HASH, Sealed, SignedBlock
from knhk.persistence import codec, postgres_care, receipt_rows
from knhk.persistence.block_rows import decode_signed_block
from knhk.persistence.cipher import Cipher
from knhk.persistence.codec import PayloadCodec
from knhk.persistence.erasing import keys_of_erased, settle
from knhk.persistence.fencing import Tip, refuse_unless_next
from knhk.persistence.postgres_checkpoint import write_checkpoint
from knhk.persistence.postgres_commit import ADD_PAYLOADS, Appending, appending
from knhk.persistence.postgres_connections import Connections
from knhk.persistence.postgres_options import PostgresOptions
from knhk.persistence.postgres_projections import PartitionProjections, sealed
from knhk.persistence.postgres_rows import PostgresRows
from knhk.persistence.postgres_session import Session
from knhk.persistence.postgres_tables import META
from knhk.persistence.ring_binding import check_ring, ring_row
from knhk.persistence.rocksdb_keys import DESCRIPTOR, RING_KEY, row_prefix, run_key
from knhk.persistence.row_scan import RowScanner
from knhk.persistence.rows import Changes, Found, Rows
from knhk.persistence.stored_blocks import StoredRows
from knhk.ports.append import Commit, Ownership
from knhk.ports.environment import PublicKey
from knhk.ports.journal import Claim
from knhk.ports.keys import RunPath

ELSEWHERE_BYTES: Final = 1 << 62
"""What `free_bytes` says: the disk is another machine's, and only its refusal tells that it is full."""

_LAST_SEQ: Final = (1 << 31) - 1
# FOR UPDATE, which an update of other columns than the key would not take: it also waits for projections under way.
_ACQUIRE: Final = """
WITH present AS (SELECT count(*) FROM (SELECT FROM partitions WHERE partition = $1 FOR UPDATE) AS locked)
INSERT INTO partitions AS present (partition, epoch, height, block_hash) SELECT $1, 1, -1, $2 FROM present
ON CONFLICT (partition) DO UPDATE SET epoch = present.epoch + 1
RETURNING epoch, height, block_hash
"""
# One lookup for each slice: a join could be planned, while the table is empty, as one that reads all of it.
_BLOCK_RECEIPTS: Final = """
SELECT leaf.workflow_id, leaf.first_seq, count, slice
FROM unnest($1::integer[], $2::bigint[], $3::integer[], $4::integer[]) WITH ORDINALITY
AS leaf(partition, workflow_id, first_seq, count, number), LATERAL (
    SELECT slice FROM receipts
    WHERE partition = leaf.partition AND workflow_id = leaf.workflow_id AND first_seq = leaf.first_seq OFFSET 0
) AS stored ORDER BY number
"""
_STORE_ROWS: Final = """
WITH changed AS (
    INSERT INTO projections (fold, key, value)
    SELECT $1, t.* FROM unnest($2::bytea[], $3::bytea[]) AS t
    ON CONFLICT (fold, key) DO UPDATE SET value = excluded.value
), deleted AS (
    DELETE FROM projections WHERE fold = $1 AND key = ANY($4::bytea[])
), folded AS (
    INSERT INTO cursors (fold, height) VALUES ($1, $5) ON CONFLICT (fold) DO UPDATE SET height = excluded.height
)
SELECT set_config('synchronous_commit', 'off', true)
"""


class Counters(msgspec.Struct):
    """What was done since the store was made."""

    commits_total: int = 0
    errors_total: int = 0
    fenced_total: int = 0
    reopens_total: int = 0


class PostgresStore:
    """Append, Journal, Projections and Storage, all on the event loop that first uses it."""

    def __init__(
        self,
        options: PostgresOptions,
        compression: bool = True,
        *,
        read_only: bool = False,
        cipher: Cipher | None = None,
        partition: int = 0,
    ) -> None:
        """Nothing is connected yet: the first use does that, and raises what postgres_errors.translated says.

        `partition` is the one whose owner cares for the rows.
        """
        self._options, self._caring = options, partition
        self.cipher = cipher or Cipher()
        keys = self.cipher.keys
        self._connections = Connections(
            options,
            read_only=read_only,
            check=lambda stored: check_ring(stored, options.name, keys, must_have=not read_only),
        )
        self._codec = PayloadCodec(compression)
        self._counters = Counters()
        self._commit_seconds = Histogram(SHORT_S)
        self._acknowledged: dict[int, Tip] = {}
        self._epochs: dict[int, int] = {}

    async def open(self) -> None:
        """Connect, and make or check the tables, now instead of at the first use."""
        await self._connections.open()

    # -- Append

    async def acquire(self, partition: int) -> Ownership:
        found = await self._connections.write("taking over a partition", _ACQUIRE, partition, NO_HASH)
        assert found is not None
        if self.cipher.encrypting:
            await self.note_ring()
        tip = Tip(found["height"], found["block_hash"])
        self._acknowledged[partition], self._epochs[partition] = tip, found["epoch"]
        return Ownership(partition, found["epoch"], await self._block_of(partition, tip))

    async def register_key(self, key: PublicKey) -> None:
        query = """
            INSERT INTO signing_keys (key_id, raw, created_at_ns, retired_at_ns) VALUES ($1, $2, $3, $4)
            ON CONFLICT (key_id) DO UPDATE
            SET raw = excluded.raw, created_at_ns = excluded.created_at_ns, retired_at_ns = excluded.retired_at_ns
        """
        given = (key.key_id, key.raw, key.created_at_ns, key.retired_at_ns)
        await self._connections.write("registering a key", query, *given)

    async def append(self, commit: Commit) -> None:
        doomed = await self._intend_erasure(commit)
        prepared = appending(commit, self._codec, self.cipher.sealer())
        began = perf_counter()
        try:
            owned = await self._append(prepared, commit.block.partition)
            if not owned:
                await self._refuse_unless_arrived(commit)
        except Fenced:
            self._counters.fenced_total += 1
            raise
        except KnhkError:
            self._counters.errors_total += 1
            raise
        self._acknowledged[commit.block.partition] = Tip(commit.block.height, commit.signed.hash())
        self._counters.commits_total += 1
        self._commit_seconds.add(perf_counter() - began)
        if doomed and self.cipher.keys is not None:  # before anybody is told that it is erased
            self.cipher.keys.settle_erasure(doomed, destroy=True)

    async def _intend_erasure(self, commit: Commit) -> list[RunPath]:
        """Note, before the commit, the keys that it destroys; a crash after it then does not forget them."""
        if not commit.erased or self.cipher.keys is None:
            return []
        doomed = await self.look(lambda rows: keys_of_erased(commit, rows))
        self.cipher.keys.intend_erasure(doomed)
        return doomed

    async def _append(self, prepared: Appending, partition: int) -> bool:
        doing = "appending"
        if not prepared.ahead:
            found = await self._connections.write(doing, prepared.query, *prepared.given)
            return found is not None and bool(found["owned"])
        async with self._connections.writing(doing) as connection:
            transaction = connection.transaction()
            await transaction.start()
            for page in prepared.ahead:
                await connection.execute(ADD_PAYLOADS, partition, *page)
            owned = bool(await connection.fetchval(prepared.query, *prepared.given))
            await (transaction.commit() if owned else transaction.rollback())
            return owned

    async def _refuse_unless_arrived(self, commit: Commit) -> None:
        """Nothing was appended: either this very commit is in the journal already, or it may not come in.

        A commit whose answer was lost with the connection can arrive late; it is known by its hash.
        """
        partition = commit.block.partition
        query = "SELECT epoch, height, block_hash FROM partitions WHERE partition = $1"
        found = await self._connections.write("looking at the head", query, partition)
        epoch, tip = (0, None) if found is None else (found["epoch"], Tip(found["height"], found["block_hash"]))
        if epoch == commit.block.epoch and tip == Tip(commit.block.height, commit.signed.hash()):
            return
        refuse_unless_next(commit, epoch, None if tip is None or tip.height < 0 else tip)
        raise Fenced(f"partition {partition}: the journal moved while block {commit.block.height} was being appended")

    async def reopen(self) -> None:
        """Connect anew. Raises JournalCorrupt if the server that answers now has less than what was acknowledged."""
        await self._connections.renew()
        before = dict(self._acknowledged)  # other partitions go on meanwhile
        # The lock waits for an append that is still under way there, and a standby refuses it.
        query = "SELECT partition, height, block_hash FROM partitions WHERE partition = ANY($1::integer[]) FOR UPDATE"
        async with self._connections.writing("reopening") as connection:
            found = await connection.fetch(query, list(before))
        heights = {row["partition"]: row["height"] for row in found}
        for partition, tip in before.items():
            there = heights.get(partition, -1)
            if there < tip.height:
                raise JournalCorrupt(
                    f"{self._options.name}: the journal of partition {partition} has lost its end: blocks {there + 1} "
                    f"to {tip.height} were acknowledged and are not there",
                    hint="This looks like a failover to a standby that was behind: use synchronous replication.",
                )
        await self.settle_erasures()  # else a commit that erased could be acknowledged before its keys are destroyed
        self._counters.reopens_total += 1

    async def now_ns(self) -> int:
        """The server's time (Unix, ns)."""
        query = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        found = await self._connections.read("reading the time", query)
        return int(found[0][0]) * 1000

    def release(self, partition: int) -> None:
        """Forget a partition that this process owns no more."""
        self._acknowledged.pop(partition, None)
        self._epochs.pop(partition, None)

    async def settle_erasures(self) -> None:
        """Destroy the keys whose erasure was committed before a crash; drop the notes of those that were not."""
        keys = self.cipher.keys
        if keys is not None and keys.pending_erasures:
            await self.look(lambda rows: settle(keys, rows))

    # -- Care of the rows

    async def look(self, read: Callable[[Rows], Found]) -> Found:
        return await postgres_care.look(self._connections, read)

    async def change(self, build: Callable[[Rows, Changes], None], *, durable: bool = False) -> None:
        await postgres_care.change(self._connections, self._caring, self.epoch_of(self._caring), build)

    async def compact(self, families: Sequence[str]) -> None:
        await postgres_care.vacuum(self._connections, families)

    async def note_ring(self) -> None:
        if self.cipher.keys is not None:
            query, given = META.put([(RING_KEY, ring_row(self.cipher.keys))])
            await self._connections.write("noting the key ring", query, *given)

    def watch_descriptors(self) -> set[bytes] | None:
        return None  # another commit may be finding at this moment that a descriptor is there

    def forget_descriptors(self) -> None:
        """Nothing is watched."""

    def stored_rows(self) -> StoredRows:
        """What is shipped to other places; to be used in another thread than the event loop's."""
        return StoredRows(PostgresRows(postgres_care.pooled(self._connections)), self.cipher)

    async def partitions(self) -> list[int]:
        """The partitions that were ever taken over, ascending."""
        found = await self._connections.read(
            "reading partitions", "SELECT partition FROM partitions ORDER BY partition"
        )
        return [partition for (partition,) in found]

    # -- Journal

    async def head(self, partition: int) -> SignedBlock | None:
        query = "SELECT height, block_hash FROM partitions WHERE partition = $1"
        found = await self._connections.read("reading the head", query, partition)
        return await self._block_of(partition, Tip(found[0]["height"], found[0]["block_hash"])) if found else None

    async def _block_of(self, partition: int, tip: Tip) -> SignedBlock | None:
        """The block of a head. Raises JournalCorrupt if it is not there or is another one."""
        if tip.height < 0:
            return None
        found = await self.blocks(partition, tip.height, 1)
        if not found or sha256(BLOCK_PREFIX + found[0].body).digest() != tip.hash:
            raise JournalCorrupt(
                f"{self._options.name}: block {tip.height} of partition {partition} is gone or changed"
            )
        return found[0]

    async def blocks(self, partition: int, from_height: int, limit: int) -> list[SignedBlock]:
        query = "SELECT height, signed FROM blocks WHERE partition = $1 AND height >= $2 ORDER BY height LIMIT $3"
        found = await self._connections.read("reading blocks", query, partition, from_height, limit)
        return [decode_signed_block(signed, partition, height) for height, signed in found]

    async def block_receipts(self, signed: SignedBlock) -> list[Sealed]:
        parts = signed.slices
        given = (
            [partition_of(part.workflow_id) for part in parts],
            [part.workflow_id for part in parts],
            [part.first_seq for part in parts],
            [part.count for part in parts],
        )
        found = await self._connections.read("reading receipts", _BLOCK_RECEIPTS, *given)
        return [sealed for run, seq, count, raw in found for sealed in self._slice(raw, run, seq)[:count]]

    async def receipts(self, workflow_id: int, from_seq: int = 0) -> list[Sealed]:
        query = """
            SELECT first_seq, slice FROM receipts WHERE partition = $1 AND workflow_id = $2 AND first_seq >= coalesce((
                SELECT max(first_seq) FROM receipts WHERE partition = $1 AND workflow_id = $2 AND first_seq <= $3
            ), 0) ORDER BY first_seq
        """
        place = (partition_of(workflow_id), workflow_id, min(from_seq, _LAST_SEQ))
        found = await self._connections.read("reading receipts", query, *place)
        if not found:
            return []
        receipts = [sealed for seq, raw in found for sealed in self._slice(raw, workflow_id, seq)]
        if not receipts[0].has_body:
            raise receipt_rows.without_bodies(workflow_id, receipts[0])
        return receipts[max(0, from_seq - found[0][0]) :]

    async def payload(self, workflow_id: int, seq: int, slot: int) -> bytes | None:
        query = """
            SELECT first_seq, payloads FROM payloads WHERE partition = $1 AND workflow_id = $2 AND first_seq <= $3
            ORDER BY first_seq DESC LIMIT 1
        """
        place = (partition_of(workflow_id), workflow_id, min(seq, _LAST_SEQ))
        found = await self._connections.read("reading a payload", query, *place)
        if not found:
            return None
        row = self.cipher.open("payloads", run_key(workflow_id, found[0][0]), found[0][1], workflow_id=workflow_id)
        kept = codec.decode(row, workflow_id)
        return next((one.raw for one in kept if one.seq == seq and one.slot == slot), None)

    def _slice(self, raw: bytes, workflow_id: int, first_seq: int) -> list[Sealed]:
        return receipt_rows.decode(raw, run_key(workflow_id, first_seq), workflow_id, self.cipher)

    async def descriptor(self, digest: bytes) -> bytes | None:
        query = "SELECT text FROM descriptors WHERE digest = $1"
        found = await self._connections.read("reading a descriptor", query, digest)
        return self.cipher.open("index", DESCRIPTOR + digest, found[0][0]) if found else None

    async def claim(self, key_digest: bytes) -> Claim | None:
        query = "SELECT key_digest, workflow_id, request_digest FROM claims WHERE key_digest = $1"
        found = await self._connections.read("reading an idempotency key", query, key_digest)
        return Claim(*found[0]) if found else None

    async def live(self, partition: int) -> list[int]:
        query = "SELECT workflow_id FROM live WHERE partition = $1 ORDER BY workflow_id"
        return [run for (run,) in await self._connections.read("reading live runs", query, partition)]

    async def timers(self, partition: int, until_ns: int, limit: int) -> list[tuple[int, int]]:
        query = """
            SELECT at_ns, workflow_id FROM timers WHERE partition = $1 AND at_ns <= $2
            ORDER BY at_ns, workflow_id LIMIT $3
        """
        found = await self._connections.read("reading timers", query, partition, until_ns, limit)
        return [(at_ns, run) for at_ns, run in found]

    async def keys(self) -> list[PublicKey]:
        query = "SELECT key_id, raw, created_at_ns, retired_at_ns FROM signing_keys ORDER BY created_at_ns, key_id"
        return [PublicKey(*row) for row in await self._connections.read("reading keys", query)]

    # -- Projections

    async def cursor(self, fold: str) -> int:
        found = await self._connections.read("reading a cursor", "SELECT height FROM cursors WHERE fold = $1", fold)
        return found[0][0] if found else -1

    async def store(self, fold: str, rows: dict[bytes, bytes | None], cursor: int) -> None:
        kept = sealed(fold, rows, self.cipher)
        gone = [key for key, value in rows.items() if value is None]
        given = (fold, list(kept), list(kept.values()), gone, cursor)
        await self._connections.write("writing projections", _STORE_ROWS, *given)

    async def row(self, fold: str, key: bytes) -> bytes | None:
        query = "SELECT value FROM projections WHERE fold = $1 AND key = $2"
        found = await self._connections.read("reading a projection", query, fold, key)
        return self.cipher.open("runs", row_prefix(fold) + key, found[0][0]) if found else None

    async def rows(
        self, fold: str, prefix: bytes, *, before: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        query = """
            SELECT key, value FROM projections
            WHERE fold = $1 AND key >= $2 AND ($3::bytea IS NULL OR key < $3) AND ($4::bytea IS NULL OR key < $4)
            ORDER BY key DESC LIMIT $5
        """
        found = await self._connections.read("reading projections", query, fold, prefix, _after(prefix), before, limit)
        return [(key, self.cipher.open("runs", row_prefix(fold) + key, value)) for key, value in found]

    def projections_of(self, partition: int) -> "PartitionProjections":
        """The same rows, written for one partition of several: with a cursor of its own, and only by its owner."""
        return PartitionProjections(self, self._connections, partition)

    def epoch_of(self, partition: int) -> int:
        """The epoch in which this process acquired a partition; 0 if it did not."""
        return self._epochs.get(partition, 0)

    # -- Storage

    async def checkpoint(self, target: Path) -> int:
        return await asyncio.get_running_loop().run_in_executor(None, write_checkpoint, self._options, target)

    def free_bytes(self) -> int:
        return ELSEWHERE_BYTES

    def statistics(self) -> dict[str, float]:
        figures = {name: float(value) for name, value in msgspec.structs.asdict(self._counters).items()}
        return {**figures, **self._connections.statistics()}

    def histograms(self) -> dict[str, Histogram]:
        return {"commit_seconds": self._commit_seconds}

    async def close(self) -> None:
        await self._connections.close()

    def scanner(self) -> RowScanner:
        """Plain iterators over everything, for offline verification."""
        return RowScanner(PostgresRows(Session(self._options).read), self.cipher)


def _after(prefix: bytes) -> bytes | None:
    """The least key that is greater than all keys with the prefix; None if there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None
