"""A checkpoint of a PostgreSQL store is a data directory of the embedded one: rows have the same bytes in both.

So it can be verified, backed up and served without PostgreSQL, and it is the way back from a cluster to one machine.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rocksdict import WriteBatch

from knhk.persistence.fencing import Tip
from knhk.persistence.postgres_options import PostgresOptions
from knhk.persistence.postgres_rows import PostgresRows
from knhk.persistence.postgres_session import Session
from knhk.persistence.rocksdb_checkpoint import publish
from knhk.persistence.rocksdb_database import Counters, Database
from knhk.persistence.rocksdb_keys import FAMILIES
from knhk.persistence.rocksdb_opening import open_database
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.persistence.rows import Row

_BATCH_BYTES: Final = 32 << 20
_OPTIONS: Final = StoreOptions(block_cache_size_bytes=8 << 20, max_background_jobs=2)


def write_checkpoint(options: PostgresOptions, target: Path) -> int:
    """Copy everything committed to a new data directory `target`; the height of partition 0 in it (-1: no block).

    Blocks for as long as it takes. Raises as rocksdb_checkpoint.publish does, and what reading PostgreSQL raises.
    """
    session = Session(options)
    stored = PostgresRows(session.read)

    def fill(copy: Path) -> dict[int, Tip]:
        database, _ = open_database(copy, _OPTIONS, Counters(), read_only=False)
        try:
            _write(database, ((family, *row) for family in FAMILIES for row in stored.scan(family, b"", None)))
        finally:
            database.close()
        heads = session.read("SELECT partition, height, block_hash FROM partitions WHERE height >= 0")
        return {partition: Tip(height, block_hash) for partition, height, block_hash in heads}

    try:
        return publish(target, _OPTIONS, fill)
    finally:
        session.close()


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
