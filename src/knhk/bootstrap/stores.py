"""Stores from the configuration."""

from knhk.config import Config
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_options import StoreOptions


def open_store(config: Config, *, read_only: bool = False) -> RocksDbStore:
    """The embedded store of this configuration.

    Raises:
        DataDirectoryInUse: another process has it open.
        JournalCorrupt: what is there is not what was written.
    """
    persistence = config.persistence
    tuning = persistence.rocksdb
    options = StoreOptions(
        write_buffer_size_bytes=tuning.write_buffer_size_bytes,
        max_write_buffer_number=tuning.max_write_buffer_number,
        target_file_size_base_bytes=tuning.target_file_size_base_bytes,
        max_background_jobs=tuning.max_background_jobs,
        compression=tuning.compression if persistence.compression else "none",
        block_cache_size_bytes=tuning.block_cache_size_bytes,
        bloom_filter_bits=tuning.bloom_filter_bits,
    )
    return RocksDbStore.open(persistence.path, options, persistence.compression, read_only=read_only)
