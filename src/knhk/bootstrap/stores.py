"""Stores from the configuration, with the keys that encrypt them."""

import os
from typing import Final

from knhk.config import Config
from knhk.config.sections import Persistence
from knhk.persistence.cipher import Cipher
from knhk.persistence.ring_binding import needs_ring
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.platform.clock import SystemClock
from knhk.ports.keys import KeyWrapper
from knhk.recovery.adopt import settle
from knhk.security.key_ring import FILE_NAME, KeyRing
from knhk.security.key_wrapping import wrapper_of

KEY_FILE: Final = "encryption.key"


def open_store(config: Config, *, read_only: bool = False) -> RocksDbStore:
    """The embedded store of this configuration.

    Raises:
        DataDirectoryInUse: another process has it open.
        JournalCorrupt, BackupCorrupt: what is there is not what was written.
        EncryptionKeyUnavailable, KeyRingCorrupt: it is encrypted, and its keys are not at hand or damaged.
    """
    persistence = config.persistence
    if not read_only:
        settle(persistence.path)
    options = store_options(persistence)
    keys = key_ring(persistence, options, may_create=persistence.encryption and not read_only)
    cipher = Cipher(keys, encrypting=persistence.encryption)
    return RocksDbStore.open(persistence.path, options, persistence.compression, read_only=read_only, cipher=cipher)


def store_options(persistence: Persistence) -> StoreOptions:
    """The store's tuning from the configuration."""
    tuning = persistence.rocksdb
    return StoreOptions(
        write_buffer_size_bytes=tuning.write_buffer_size_bytes,
        max_write_buffer_number=tuning.max_write_buffer_number,
        target_file_size_base_bytes=tuning.target_file_size_base_bytes,
        max_background_jobs=tuning.max_background_jobs,
        compression=tuning.compression if persistence.compression else "none",
        block_cache_size_bytes=tuning.block_cache_size_bytes,
        bloom_filter_bits=tuning.bloom_filter_bits,
    )


def key_ring(persistence: Persistence, options: StoreOptions, *, may_create: bool) -> KeyRing | None:
    """The key ring of a data directory; None if it has none, and none is to be made.

    A ring is made for a directory that never had one, and never in the place of one that is lost: the store then says
    so. Raises EncryptionKeyUnavailable, KeyRingCorrupt or InvalidConfiguration.
    """
    directory = persistence.key_path
    if (directory / FILE_NAME).exists():
        return KeyRing.load(directory, key_wrapper(persistence, may_create=False))
    if not may_create or needs_ring(persistence.path, options):
        return None
    return KeyRing.create(directory, key_wrapper(persistence, may_create=True), SystemClock().now_ns())


def key_wrapper(persistence: Persistence, *, may_create: bool) -> KeyWrapper:
    """The key-encryption key of this configuration."""
    source = persistence.encryption_key or f"file:{persistence.key_path / KEY_FILE}"
    return wrapper_of(source, os.environ, may_create=may_create)
