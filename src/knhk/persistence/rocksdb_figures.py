"""What RocksDB counts by itself: its statistics as text, read into the figures that operators ask for."""

import re
from typing import Final, NamedTuple


class _Ticker(NamedTuple):
    figure: str
    scale: float = 1.0


_TICKERS: Final = {
    "rocksdb.block.cache.hit": _Ticker("block_cache_hits_total"),
    "rocksdb.block.cache.miss": _Ticker("block_cache_misses_total"),
    "rocksdb.bloom.filter.useful": _Ticker("bloom_filter_useful_total"),
    "rocksdb.compact.read.bytes": _Ticker("compaction_read_bytes_total"),
    "rocksdb.compact.write.bytes": _Ticker("compaction_written_bytes_total"),
    "rocksdb.compaction.total.time.cpu_micros": _Ticker("compaction_cpu_seconds_total", 1e-6),
    "rocksdb.flush.write.bytes": _Ticker("flush_written_bytes_total"),
    "rocksdb.stall.micros": _Ticker("stall_seconds_total", 1e-6),
}
_LINE: Final = re.compile(r"^(rocksdb\.[\w.]+) COUNT : (\d+)$", re.MULTILINE)


def tickers(statistics: str) -> dict[str, float]:
    """The figures in RocksDB's statistics; what this version of it does not tell is left out."""
    return {
        _TICKERS[name].figure: int(count) * _TICKERS[name].scale
        for name, count in _LINE.findall(statistics)
        if name in _TICKERS
    }
