"""A checkpoint of a PostgreSQL store is a data directory of the embedded one: rows have the same bytes in both.

So it can be verified, backed up and served without PostgreSQL, and it is the way back from a cluster to one machine.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from rocksdict import WriteBatch

from knhk.persistence.fencing import Tip
from knhk.persistence.postgres_options import PostgresOptions
from knhk.persistence.postgres_scan import PostgresScanner
from knhk.persistence.rocksdb_checkpoint import publish
from knhk.persistence.rocksdb_database import Counters, Database
from knhk.persistence.rocksdb_keys import (
    CLAIM,
    CURSOR,
    DESCRIPTOR,
    NUMBER,
    block_key,
    epoch_key,
    live_key,
    row_prefix,
    run_key,
    timer_key,
)
from knhk.persistence.rocksdb_opening import open_database
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.ports.environment import PublicKey
from knhk.ports.journal import Claim

_BATCH_BYTES: Final = 32 << 20
_OPTIONS: Final = StoreOptions(block_cache_size_bytes=8 << 20, max_background_jobs=2)
_ENCODER: Final = msgspec.msgpack.Encoder()

Row = tuple[str, bytes, bytes]
"""Column family, key and value."""


def write_checkpoint(options: PostgresOptions, target: Path) -> int:
    """Copy everything committed to a new data directory `target`; the height of partition 0 in it (-1: no block).

    Blocks for as long as it takes. Raises as rocksdb_checkpoint.publish does, and what reading PostgreSQL raises.
    """
    scanner = PostgresScanner(options)

    def fill(copy: Path) -> dict[int, Tip]:
        database, _ = open_database(copy, _OPTIONS, Counters(), read_only=False)
        try:
            _write(database, _rows(scanner))
        finally:
            database.close()
        heads = scanner.rows("SELECT partition, height, block_hash FROM partitions WHERE height >= 0")
        return {partition: Tip(height, block_hash) for partition, height, block_hash in heads}

    try:
        return publish(target, _OPTIONS, fill)
    finally:
        scanner.close()


def _write(database: Database, rows: Iterator[Row]) -> None:
    batch, size = WriteBatch(raw_mode=True), 0
    for family, key, value in rows:
        batch.put(key, value, database.handles[family])
        size += len(key) + len(value)
        if size > _BATCH_BYTES:
            database.write(batch)
            database.flush()  # Less than a memtable holds, so that a write never has to wait for one.
            batch, size = WriteBatch(raw_mode=True), 0
    database.write(batch)
    database.sync()
    database.flush()


def _rows(scanner: PostgresScanner) -> Iterator[Row]:
    """Everything, in the keys and values of rocksdb_keys.py."""
    for run, seq, raw in scanner.rows("SELECT workflow_id, first_seq, slice FROM receipts"):
        yield "receipts", run_key(run, seq), raw
    for run, seq, raw in scanner.rows("SELECT workflow_id, first_seq, payloads FROM payloads"):
        yield "payloads", run_key(run, seq), raw
    for partition, height, signed in scanner.rows("SELECT partition, height, signed FROM blocks"):
        yield "blocks", block_key(partition, height), signed
    for digest, text in scanner.rows("SELECT digest, text FROM descriptors"):
        yield "index", DESCRIPTOR + digest, text
    for claim in scanner.rows("SELECT key_digest, workflow_id, request_digest FROM claims"):
        yield "index", CLAIM + claim["key_digest"], _ENCODER.encode(Claim(*claim))
    for (run,) in scanner.rows("SELECT workflow_id FROM live"):
        yield "index", live_key(run), b""
    for at_ns, run in scanner.rows("SELECT at_ns, workflow_id FROM timers"):
        yield "timers", timer_key(at_ns, run), b""
    for key in scanner.rows("SELECT key_id, raw, created_at_ns, retired_at_ns FROM signing_keys"):
        yield "keys", key["key_id"].encode(), _ENCODER.encode(PublicKey(*key))
    for partition, epoch in scanner.rows("SELECT partition, epoch FROM partitions"):
        yield "meta", epoch_key(partition), NUMBER.pack(epoch)
    for fold, key, value in scanner.rows("SELECT fold, key, value FROM projections"):
        yield "runs", row_prefix(fold) + key, value
    for fold, height in scanner.rows("SELECT fold, height FROM cursors"):
        yield "runs", CURSOR + fold.encode(), NUMBER.pack(height)
