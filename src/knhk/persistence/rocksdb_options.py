"""The settings of the RocksDB store, and what they become in RocksDB."""

from typing import Final, Literal

import msgspec
from rocksdict import BlockBasedOptions, Cache, ChecksumType, DBCompressionType, DBRecoveryMode, Options

CompressionName = Literal["none", "snappy", "lz4", "zstd"]

_COMPRESSION: Final = {
    "none": DBCompressionType.none,
    "snappy": DBCompressionType.snappy,
    "lz4": DBCompressionType.lz4,
    "zstd": DBCompressionType.zstd,
}
_NEVER: Final = 1 << 20


class StoreOptions(msgspec.Struct, frozen=True):
    """The tuning of the production guide, in plain numbers. The write buffer counts per column family."""

    write_buffer_size_bytes: int = 64 << 20
    max_write_buffer_number: int = 3
    target_file_size_base_bytes: int = 64 << 20
    max_background_jobs: int = 8
    compression: CompressionName = "lz4"
    block_cache_size_bytes: int = 1 << 30
    bloom_filter_bits: int = 10
    max_total_wal_size_bytes: int = 256 << 20


def block_cache(options: StoreOptions) -> Cache:
    """The one cache that all column families share."""
    return Cache(options.block_cache_size_bytes)


def rocksdb_options(options: StoreOptions, cache: Cache, *, create: bool, log_directory: str | None) -> Options:
    """The options of the database and of each column family.

    `create` permits making the database. `log_directory` takes RocksDB's own log elsewhere, for those who may not
    write; those who may also make column families that are missing.
    """
    made = Options(raw_mode=True)
    made.create_if_missing(create)
    made.create_missing_column_families(log_directory is None)
    made.set_write_buffer_size(options.write_buffer_size_bytes)
    made.set_max_write_buffer_number(options.max_write_buffer_number)
    made.set_target_file_size_base(options.target_file_size_base_bytes)
    made.set_max_background_jobs(options.max_background_jobs)
    made.set_max_total_wal_size(options.max_total_wal_size_bytes)
    made.set_compression_type(_COMPRESSION[options.compression]())
    made.set_block_based_table_factory(_table_options(options, cache))
    _set_safety(made)
    _set_stall_limits(made)
    made.set_keep_log_file_num(4)
    made.set_max_log_file_size(4 << 20)
    made.enable_statistics()
    made.set_stats_dump_period_sec(0)
    made.set_stats_persist_period_sec(0)
    if log_directory is not None:
        made.set_db_log_dir(log_directory)
    return made


def _table_options(options: StoreOptions, cache: Cache) -> BlockBasedOptions:
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    if options.bloom_filter_bits > 0:
        table.set_bloom_filter(options.bloom_filter_bits, False)
    table.set_block_size(16 << 10)
    table.set_checksum_type(ChecksumType.xxh3())
    return table


def _set_safety(made: Options) -> None:
    """A torn tail of the log is what a killed process leaves; damage anywhere else refuses to open.

    All column families are flushed together, so that no damage of the log can leave one behind another.
    """
    made.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    made.set_paranoid_checks(True)
    made.set_atomic_flush(True)
    made.set_allow_concurrent_memtable_write(False)  # one thread writes; 0.1 us a row less


def _set_stall_limits(made: Options) -> None:
    """Compaction that lags must not slow down commits: reads cost more for a while instead.

    What remains is a stall when memtables are written faster than they are flushed; writes are refused then
    (`no_slowdown`) and repeated, because waiting inside of RocksDB would hold the interpreter's lock.
    """
    made.set_level_zero_slowdown_writes_trigger(_NEVER)
    made.set_level_zero_stop_writes_trigger(_NEVER)
    made.set_soft_pending_compaction_bytes_limit(0)
    made.set_hard_pending_compaction_bytes_limit(0)
