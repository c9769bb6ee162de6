"""Which runs are past their retention, and what takes the place of their rows: hashes, and a signed record.

A page of runs goes in one durable batch: receipts become hashes, payloads, lists and idempotency keys go. Dying before
it leaves everything, after it nothing; there is no state in between. Only a run that has ended, is marked neither live
nor waiting, verifies, and is at rest in the engine, and kept so until the batch is written, is taken.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import islice
from typing import Final

import msgspec

from knhk.domain import event as ev
from knhk.domain import summary as summaries
from knhk.domain.errors import Corrupt, EncryptionKeyUnavailable
from knhk.domain.identifier import at_ms, to_text
from knhk.domain.receipt import Sealed, verify_chain
from knhk.domain.summary import Summary
from knhk.engine.projector import FOLD, row_key, state_key
from knhk.persistence import receipt_rows
from knhk.persistence.cipher import Cipher
from knhk.persistence.prune_records import digest_entry
from knhk.persistence.rocksdb_keys import CLAIM, DESCRIPTOR, MAX_SEQ, RUN, live_key, row_prefix, run_key
from knhk.persistence.rows import Changes, Row, Rows
from knhk.ports.journal import Claim

ENDED: Final = frozenset({"completed", "failed", "cancelled", "timed_out"})
_CLAIM: Final = msgspec.msgpack.Decoder(Claim)
_MS: Final = 1_000_000


class Prunable(msgspec.Struct, frozen=True):
    """A run that may be pruned, with its rows as they are stored."""

    summary: Summary
    receipts: list[Sealed]
    stored: list[Row]
    claim_key: bytes
    descriptors: set[bytes]

    @property
    def workflow_id(self) -> int:
        return self.summary.workflow_id

    @property
    def size_bytes(self) -> int:
        return sum(len(key) + len(value) for _, key, value in self.stored)


class Found(msgspec.Struct):
    """A page of a pass: what may be pruned, what does not verify, and the key after which the next page begins.

    `after` is None at the end of the pass.
    """

    runs: list[Prunable]
    unsound: list[str]
    after: bytes | None
    read_bytes: int = 0


def find(
    rows: Rows, cipher: Cipher, partition: int, after: bytes, cutoff_ns: int, most_rows: int, most_bytes: int
) -> Found:
    """The next runs that ended before the cutoff, oldest first. Rows of a run that does not verify are not touched."""
    prefix = row_prefix(FOLD)
    first = prefix + row_key(partition << 12)[:3]
    found = Found([], [], None)
    scan = rows.scan("runs", max(first, after), first + b"\xff" * 9)
    for number, (key, value) in enumerate(scan):
        if number == most_rows or found.read_bytes >= most_bytes:
            found.after = key
            return found
        found.read_bytes += len(key) + len(value)
        if at_ms(int.from_bytes(key[-8:])) * _MS >= cutoff_ns:
            return found  # younger ones follow
        try:
            summary = summaries.decode(cipher.open("runs", key, value))
            if summary.state not in ENDED or not 0 < summary.ended_at_ns < cutoff_ns:
                continue
            run = _prunable(rows, cipher, summary)
        except (Corrupt, EncryptionKeyUnavailable, msgspec.DecodeError, KeyError) as error:
            found.unsound.append(f"{to_text(int.from_bytes(key[-8:]))}: {error}")
            continue
        if run is not None and run.receipts[-1].receipt().at_ns < cutoff_ns:
            found.runs.append(run)
            found.read_bytes += run.size_bytes
    return found


def _prunable(rows: Rows, cipher: Cipher, summary: Summary) -> Prunable | None:
    run = summary.workflow_id
    start, end = run_key(run, 0), run_key(run, MAX_SEQ) + b"\x00"
    stored: list[Row] = [("receipts", key, row) for key, row in rows.scan("receipts", start, end)]
    if not stored or any(receipt_rows.is_pruned(row) for _, _, row in stored):
        return None
    receipts = [one for _, key, row in stored for one in receipt_rows.decode(row, key, run, cipher)]
    faults = [fault for fault in verify_chain(run, receipts) if fault.what != "time_reversal"]
    if faults:
        raise Corrupt(faults[0].message)
    detail = receipts[0].receipt().typed_detail()
    if not isinstance(detail, ev.Submitted):
        return None  # a record, not a run
    stored += [("payloads", key, row) for key, row in rows.scan("payloads", start, end)]
    key = CLAIM + sha256(detail.idempotency_key.encode()).digest() if detail.idempotency_key else b""
    return Prunable(summary, receipts, stored, key, {one.receipt().descriptor_digest for one in receipts})


def still_prunable(rows: Rows, run: Prunable) -> bool:
    """Whether nothing happened to the run since it was found."""
    number = run.workflow_id
    if rows.get("index", live_key(number)) is not None:
        return False
    scan = rows.scan("receipts", run_key(number, 0), run_key(number, MAX_SEQ) + b"\x00")
    return [key for key, _ in scan] == [key for family, key, _ in run.stored if family == "receipts"]


def digest_of(runs: Sequence[Prunable]) -> bytes:
    """The digest of a record over these runs, ascending by id."""
    return sha256(b"".join(digest_entry(run.workflow_id, run.receipts[-1].hash) for run in runs)).digest()


def prune(rows: Rows, changes: Changes, run: Prunable, record: int) -> int:
    """Put hashes in the place of a run's receipts, and delete all else of it; the bytes that go."""
    gone = 0
    seq = 0
    for family, key, row in run.stored:
        if family == "payloads":
            changes.delete(family, key)
            gone += len(key) + len(row)
            continue
        following = _first_seq_after(run, key)
        kept = receipt_rows.pruned(run.receipts[seq:following], record)
        changes.put(family, key, kept)
        gone += len(row) - len(kept)
        seq = following
    prefix = row_prefix(FOLD)
    for name in (row_key(run.workflow_id), state_key(run.summary.state, run.workflow_id)):
        changes.delete("runs", prefix + name)
    if run.claim_key:
        claim = rows.get("index", run.claim_key)
        if claim is not None and _CLAIM.decode(claim).workflow_id == run.workflow_id:
            changes.delete("index", run.claim_key)
    return gone


def _first_seq_after(run: Prunable, key: bytes) -> int:
    """Where the slice behind the one with this key begins."""
    later = [RUN.unpack(one)[2] for family, one, _ in run.stored if family == "receipts" and one > key]
    return min(later, default=len(run.receipts))


def descriptors_in_use(rows: Rows, cipher: Cipher, after: bytes, most_rows: int) -> tuple[set[bytes], bytes | None]:
    """The descriptors that the next rows of receipts name, and where to go on (None: that was all)."""
    found: set[bytes] = set()
    scan = iter(rows.scan("receipts", after, None))
    for key, row in islice(scan, most_rows):
        if not receipt_rows.is_pruned(row):
            found |= {
                one.receipt().descriptor_digest for one in receipt_rows.decode(row, key, RUN.unpack(key)[1], cipher)
            }
    following = next(scan, None)
    return found, None if following is None else following[0]


def stored_descriptors(rows: Rows, digests: set[bytes]) -> Iterator[Row]:
    """The rows of descriptors."""
    for digest in sorted(digests):
        row = rows.get("index", DESCRIPTOR + digest)
        if row is not None:
            yield "index", DESCRIPTOR + digest, row
