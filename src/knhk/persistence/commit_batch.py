"""A commit as one RocksDB write batch: the hot path, 1 us for each row put."""

from typing import Final

import msgspec
from rocksdict import WriteBatch

from knhk.domain.identifier import PARTITION_BITS, SEQUENCE_BITS
from knhk.persistence import receipt_rows
from knhk.persistence.cipher import Sealer, in_clear
from knhk.persistence.codec import PayloadCodec
from knhk.persistence.erasing import seal_payloads
from knhk.persistence.rocksdb_database import Database
from knhk.persistence.rocksdb_keys import (
    CLAIM,
    DESCRIPTOR,
    MAX_SEQ,
    RUN,
    block_key,
    live_key,
    run_key,
    timer_key,
)
from knhk.ports.append import Commit

_ENCODER: Final = msgspec.msgpack.Encoder()
_PARTITION_MASK: Final = (1 << PARTITION_BITS) - 1


def batch_of(commit: Commit, database: Database, codec: PayloadCodec, sealer: Sealer | None) -> WriteBatch:
    """All rows of a commit, encrypted if there is a sealer. Reads the store only for the payloads of erased runs."""
    handles = database.handles
    batch = WriteBatch(raw_mode=True)
    put, encode = batch.put, _ENCODER.encode
    for workflow_id in commit.erased:
        _erase(batch, database, workflow_id)
    receipts, payloads, pack = handles["receipts"], handles["payloads"], RUN.pack
    for part in commit.slices:
        workflow_id = part.workflow_id
        key = pack((workflow_id >> SEQUENCE_BITS) & _PARTITION_MASK, workflow_id, part.first_seq)
        put(key, encode(part.receipts) if sealer is None else receipt_rows.encode(part.receipts, key, sealer), receipts)
        if part.payloads:
            row = codec.encode(part.payloads)
            put(key, row if sealer is None else seal_payloads(commit, part, row, sealer), payloads)
    block = commit.block
    put(block_key(block.partition, block.height), encode(commit.signed), handles["blocks"])
    _put_marks(batch, commit, database, sealer)
    return batch


def _put_marks(batch: WriteBatch, commit: Commit, database: Database, sealer: Sealer | None) -> None:
    """Descriptors, claims, live marks and timers; what is both set and cleared ends cleared."""
    index, timers = database.handles["index"], database.handles["timers"]
    for digest, raw in commit.descriptors:
        key = DESCRIPTOR + digest
        batch.put(key, in_clear(raw) if sealer is None else sealer.seal("index", key, raw), index)
    for claim in commit.claims:
        batch.put(CLAIM + claim.key_digest, _ENCODER.encode(claim), index)
    for workflow_id in commit.live:
        batch.put(live_key(workflow_id), b"", index)
    for workflow_id in commit.not_live:
        batch.delete(live_key(workflow_id), index)
    for at_ns, workflow_id in commit.timers_set:
        batch.put(timer_key(at_ns, workflow_id), b"", timers)
    for at_ns, workflow_id in commit.timers_cleared:
        batch.delete(timer_key(at_ns, workflow_id), timers)


def _erase(batch: WriteBatch, database: Database, workflow_id: int) -> None:
    """Delete the run's payloads one by one: range deletions that pile up slow down every later read of the family."""
    end = run_key(workflow_id, MAX_SEQ) + b"\x00"
    for key, _ in database.scan("payloads", run_key(workflow_id, 0), end):
        batch.delete(key, database.handles["payloads"])
