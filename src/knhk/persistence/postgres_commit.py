"""A group commit as one SQL statement, which is its own transaction: the hot path.

The partition's row comes first: its update takes the row's lock and finds nothing unless the epoch is the present one
and the block is the next. All the rest is inserted from what that update returns, so that a former owner inserts
nothing. Because there is no second round trip, no lock can be left behind by a client that is stopped or cut off.

Its plan is made once for a connection, often while the tables are empty, when it seems cheap to read them whole. So
rows are looked for in ways that leave the planner no choice but the index: a subquery for each row, or `= ANY`.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from knhk.persistence import receipt_rows
from knhk.persistence.cipher import Sealer, in_clear
from knhk.persistence.codec import PayloadCodec
from knhk.persistence.erasing import seal_payloads
from knhk.persistence.rocksdb_keys import DESCRIPTOR, run_key
from knhk.ports.append import Commit

LARGEST_MESSAGE_BYTES: Final = 64 << 20
"""Payloads beyond this are sent ahead, in the same transaction: PostgreSQL takes messages of up to 1 GiB."""

ADD_PAYLOADS: Final = """
INSERT INTO payloads (partition, workflow_id, first_seq, payloads)
SELECT $1, run, seq, raw FROM unnest($2::bigint[], $3::integer[], $4::bytea[]) AS t(run, seq, raw)
"""

_RECEIPTS: Final = """
WITH owner AS (
    UPDATE partitions SET height = $3, block_hash = $5
    WHERE partition = $1 AND epoch = $2 AND height = $3 - 1 AND block_hash = $4
    RETURNING partition
), new_block AS (
    INSERT INTO blocks (partition, height, signed) SELECT partition, $3, $6 FROM owner
), new_receipts AS (
    INSERT INTO receipts (partition, workflow_id, first_seq, slice)
    SELECT partition, run, seq, raw FROM owner, unnest($7::bigint[], $8::integer[], $9::bytea[]) AS t(run, seq, raw)
), new_payloads AS (
    INSERT INTO payloads (partition, workflow_id, first_seq, payloads)
    SELECT partition, run, seq, raw FROM owner, unnest($10::bigint[], $11::integer[], $12::bytea[]) AS t(run, seq, raw)
), new_live AS (
    INSERT INTO live (partition, workflow_id) SELECT partition, run FROM owner, unnest($13::bigint[]) AS t(run)
    ON CONFLICT DO NOTHING
), not_live AS (
    DELETE FROM live USING owner WHERE live.partition = owner.partition AND workflow_id = ANY($14::bigint[])
), new_descriptors AS (
    INSERT INTO descriptors AS known (digest, text)
    SELECT t.digest, t.text FROM owner, unnest($15::bytea[], $16::bytea[]) AS t(digest, text)
    WHERE t.text IS DISTINCT FROM (SELECT d.text FROM descriptors d WHERE d.digest = t.digest)
    ORDER BY t.digest
    ON CONFLICT (digest) DO UPDATE SET text = excluded.text
)"""

_MARKS: Final = """, new_claims AS (
    INSERT INTO claims (key_digest, workflow_id, request_digest)
    SELECT t.* FROM owner, unnest($17::bytea[], $18::bigint[], $19::bytea[]) AS t
    ON CONFLICT (key_digest) DO UPDATE SET workflow_id = excluded.workflow_id, request_digest = excluded.request_digest
), new_timers AS (
    INSERT INTO timers (partition, at_ns, workflow_id)
    SELECT partition, t.* FROM owner, unnest($20::bigint[], $21::bigint[]) AS t
    ON CONFLICT DO NOTHING
), no_timers AS (
    DELETE FROM timers USING owner
    WHERE timers.partition = owner.partition AND at_ns = ANY($22::bigint[])
    AND (at_ns, workflow_id) IN (SELECT * FROM unnest($22::bigint[], $23::bigint[]))
), erased AS (
    DELETE FROM payloads USING owner WHERE payloads.partition = owner.partition AND workflow_id = ANY($24::bigint[])
)"""

_OWNED: Final = "SELECT count(*) AS owned FROM owner"
_WITHOUT_MARKS: Final = f"{_RECEIPTS}\n{_OWNED}"
_WITH_MARKS: Final = f"{_RECEIPTS}{_MARKS}\n{_OWNED}"
_ENCODER: Final = msgspec.msgpack.Encoder()

Rows = tuple[list[int], list[int], list[bytes]]
"""Workflow ids, first seqs and bytes: one row of `receipts` or `payloads` each."""


class Appending(msgspec.Struct, frozen=True):
    """What to send for a commit: `ahead`, if it is large, pages of payloads in the same transaction, then `query`."""

    query: str
    given: tuple[Any, ...]
    ahead: list[Rows]


def appending(commit: Commit, codec: PayloadCodec, sealer: Sealer | None = None) -> Appending:
    """The statement of a commit and what is given to it; its rows are encrypted if there is a sealer."""
    encode = _ENCODER.encode
    payloads = _payload_rows(commit, codec, sealer)
    ahead: list[Rows] = []
    if sum(map(len, payloads[2])) > LARGEST_MESSAGE_BYTES:
        ahead, payloads = list(_pages(payloads)), ([], [], [])
    block, slices = commit.block, commit.slices
    gone = set(commit.not_live)
    given: tuple[Any, ...] = (
        block.partition,
        block.epoch,
        block.height,
        block.previous_block_hash,
        commit.signed.hash(),
        encode(commit.signed),
        [part.workflow_id for part in slices],
        [part.first_seq for part in slices],
        [encode(part.receipts) for part in slices] if sealer is None else _sealed_receipts(commit, sealer),
        *payloads,
        [run for run in commit.live if run not in gone],
        commit.not_live,
        [digest for digest, _ in commit.descriptors],
        [
            in_clear(text) if sealer is None else sealer.seal("index", DESCRIPTOR + digest, text)
            for digest, text in commit.descriptors
        ],
    )
    if not (commit.claims or commit.timers_set or commit.timers_cleared or commit.erased):
        return Appending(_WITHOUT_MARKS, given, ahead)
    return Appending(_WITH_MARKS, (*given, *_marks(commit)), ahead)


def _sealed_receipts(commit: Commit, sealer: Sealer) -> list[bytes]:
    return [
        receipt_rows.encode(part.receipts, run_key(part.workflow_id, part.first_seq), sealer) for part in commit.slices
    ]


def _payload_rows(commit: Commit, codec: PayloadCodec, sealer: Sealer | None) -> Rows:
    kept = [part for part in commit.slices if part.payloads]
    rows = [codec.encode(part.payloads) for part in kept]
    if sealer is not None:
        rows = [seal_payloads(commit, part, row, sealer) for part, row in zip(kept, rows, strict=True)]
    return [part.workflow_id for part in kept], [part.first_seq for part in kept], rows


def _pages(rows: Rows) -> Iterator[Rows]:
    """The same rows in pieces that fit into a message each."""
    start = size = 0
    for at, raw in enumerate(rows[2]):
        size += len(raw)
        if size > LARGEST_MESSAGE_BYTES and at > start:
            yield rows[0][start:at], rows[1][start:at], rows[2][start:at]
            start, size = at, len(raw)
    yield rows[0][start:], rows[1][start:], rows[2][start:]


def _marks(commit: Commit) -> tuple[Any, ...]:
    """Claims, timers and erasures. One statement may touch a row once only, so that the last claim of a key counts."""
    claims = {claim.key_digest: claim for claim in commit.claims}
    cleared = set(commit.timers_cleared)
    timers = [timer for timer in commit.timers_set if timer not in cleared]
    return (
        list(claims),
        [claim.workflow_id for claim in claims.values()],
        [claim.request_digest for claim in claims.values()],
        [at_ns for at_ns, _ in timers],
        [run for _, run in timers],
        [at_ns for at_ns, _ in cleared],
        [run for _, run in cleared],
        commit.erased,
    )
