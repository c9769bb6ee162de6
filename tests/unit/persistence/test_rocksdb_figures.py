"""RocksDB's statistics, as it writes them."""

from pathlib import Path

from knhk.persistence.rocksdb_database import Counters, Database
from knhk.persistence.rocksdb_figures import tickers
from knhk.persistence.rocksdb_options import StoreOptions


def test_counts_are_read_and_scaled() -> None:
    text = "rocksdb.block.cache.hit COUNT : 7\nrocksdb.stall.micros COUNT : 1500000\nrocksdb.unknown COUNT : 1\n"
    assert tickers(text) == {"block_cache_hits_total": 7, "stall_seconds_total": 1.5}
    assert tickers("") == {}


def test_the_database_tells_them(tmp_path: Path) -> None:
    database = Database(tmp_path, StoreOptions(), Counters(), create=True, read_only=False)
    found = database.properties()
    database.close()
    assert {"block_cache_hits_total", "compaction_written_bytes_total", "stall_seconds_total"} <= found.keys()
