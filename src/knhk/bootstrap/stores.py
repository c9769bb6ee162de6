"""Stores from the configuration, with the keys that encrypt them."""

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from knhk.bootstrap.clustered import shares_journal
from knhk.config import Config
from knhk.config.sections import Persistence
from knhk.domain.errors import InvalidConfiguration, JournalCorrupt
from knhk.persistence.cipher import Cipher
from knhk.persistence.postgres_options import PostgresOptions
from knhk.persistence.ring_binding import needs_ring
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_keys import RING_KEY
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.platform.clock import SystemClock
from knhk.ports.keys import KeyWrapper
from knhk.ports.storage import Projections
from knhk.recovery.adopt import settle
from knhk.security.key_ring import FILE_NAME, KeyRing, Wrapping
from knhk.security.key_wrapping import wrapper_of

KEY_FILE: Final = "encryption.key"

if TYPE_CHECKING:
    from knhk.persistence.postgres import PostgresStore


def open_store(config: Config, *, read_only: bool = False) -> "RocksDbStore | PostgresStore":
    """The store of this configuration; one in PostgreSQL connects at its first use.

    Raises:
        DataDirectoryInUse: another process has the directory open.
        JournalCorrupt, BackupCorrupt: what is there is not what was written.
        EncryptionKeyUnavailable, KeyRingCorrupt: it is encrypted, and its keys are not at hand or damaged.
        InvalidConfiguration: as postgres_store says, or a cluster is to be encrypted.
    """
    if config.persistence.encryption and shares_journal(config):
        raise InvalidConfiguration(
            "persistence.encryption is for a node that works alone, and this one is one of a cluster",
            hint="Set it to false, and have PostgreSQL's disk encrypted.",
        )
    if config.persistence.url:
        return postgres_store(config.persistence, read_only=read_only)
    return _embedded_store(config, read_only=read_only)


def postgres_store(
    persistence: Persistence, *, read_only: bool = False, cipher: Cipher | None = None
) -> "PostgresStore":
    """The store in the database of `persistence.url`.

    `cipher` is what opens its rows, if not what the configuration says. Raises InvalidConfiguration if asyncpg is not
    installed, and what key_ring does.
    """
    try:
        from knhk.persistence.postgres import PostgresStore
        from knhk.persistence.postgres_rows import PostgresRows
        from knhk.persistence.postgres_session import Session
    except ModuleNotFoundError as error:
        raise InvalidConfiguration(
            f"persistence.url needs the Python package {error.name}", hint="Install it: pip install 'knhk[postgres]'"
        ) from error
    options = postgres_options(persistence)

    def has_ring() -> bool:
        session = Session(options)
        try:
            return PostgresRows(session.read).get("meta", RING_KEY) is not None
        except JournalCorrupt:
            return False  # there are no tables yet
        finally:
            session.close()

    if cipher is None:
        keys = key_ring(persistence, has_ring, may_create=persistence.encryption and not read_only)
        cipher = Cipher(keys, encrypting=persistence.encryption)
    return PostgresStore(options, persistence.compression, read_only=read_only, cipher=cipher)


def postgres_options(persistence: Persistence) -> PostgresOptions:
    """Which database, and how it is spoken to."""
    return PostgresOptions(
        url=persistence.url,
        schema=persistence.postgres.schema_name,
        connections=persistence.postgres.connections,
        timeout_s=persistence.postgres.timeout_ns / 1e9,
    )


def projections_of(store: "RocksDbStore | PostgresStore", partition: int) -> Projections:
    """The projections of one partition: in PostgreSQL only its owner may write them."""
    return store if isinstance(store, RocksDbStore) else store.projections_of(partition)


def _embedded_store(config: Config, *, read_only: bool) -> RocksDbStore:
    persistence = config.persistence
    if not read_only:
        settle(persistence.path)
    options = store_options(persistence)
    has_ring = partial(needs_ring, persistence.path, options)
    keys = key_ring(persistence, has_ring, may_create=persistence.encryption and not read_only)
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


def key_ring(persistence: Persistence, has_ring: Callable[[], bool], *, may_create: bool) -> KeyRing | None:
    """The key ring of a store; None if it has none, and none is to be made. `has_ring` asks the store.

    A ring is made for a store that never had one, and never in the place of one that is lost: the store then says so.
    Raises EncryptionKeyUnavailable, KeyRingCorrupt or InvalidConfiguration.
    """
    directory = persistence.key_path
    if (directory / FILE_NAME).exists():
        wrapper = key_wrapper(persistence, may_create=False)
        ring = KeyRing.load(directory, wrapper)
        if may_create and ring.key_id != wrapper.key_id:
            ring.rewrap(Wrapping.by(wrapper))  # the operator put another key in front
        return ring
    if not may_create or has_ring():
        return None
    return KeyRing.create(directory, key_wrapper(persistence, may_create=True), SystemClock().now_ns())


def key_wrapper(persistence: Persistence, *, may_create: bool) -> KeyWrapper:
    """The key-encryption key of this configuration."""
    source = persistence.encryption_key or f"file:{persistence.key_path / KEY_FILE}"
    return wrapper_of(source, os.environ, may_create=may_create)
