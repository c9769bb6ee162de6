"""The stores that must keep the contract. Another one is one more class here."""

from pathlib import Path
from typing import Any, Protocol

from knhk.persistence.memory import MemoryStore
from knhk.persistence.postgres import PostgresStore
from knhk.persistence.postgres_options import PostgresOptions
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_options import StoreOptions
from tests.key_rings import cipher
from tests.services.postgres import shared_server

SMALL = StoreOptions(write_buffer_size_bytes=1 << 20, block_cache_size_bytes=1 << 20, max_background_jobs=2)


class Backend(Protocol):
    """How one kind of store is made, killed and restored."""

    name: str

    def open(self) -> Any: ...

    async def restart(self, store: Any) -> Any:
        """What a new process finds after `store` was closed."""
        ...

    def open_checkpoint(self, path: Path) -> Any: ...


class MemoryBackend:
    name = "memory"

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> MemoryStore:
        return MemoryStore()

    async def restart(self, store: MemoryStore) -> MemoryStore:
        await store.close()
        return store.survivor()

    def open_checkpoint(self, path: Path) -> MemoryStore:
        return MemoryStore.load(path)


class RocksDbBackend:
    name = "rocksdb"

    def __init__(self, path: Path) -> None:
        self.path = path / "store"

    def open(self) -> RocksDbStore:
        return RocksDbStore.open(self.path, SMALL, compression=True)

    async def restart(self, store: RocksDbStore) -> RocksDbStore:
        await store.close()
        return self.open()

    def open_checkpoint(self, path: Path) -> RocksDbStore:
        return RocksDbStore.open(path, SMALL, compression=True)


class EncryptedRocksDbBackend(RocksDbBackend):
    name = "rocksdb-encrypted"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.keys = path / "keys"

    def open(self) -> RocksDbStore:
        return RocksDbStore.open(self.path, SMALL, compression=True, cipher=cipher(self.keys))

    def open_checkpoint(self, path: Path) -> RocksDbStore:
        return RocksDbStore.open(path, SMALL, compression=True, cipher=cipher(self.keys))


class PostgresBackend:
    name = "postgres"

    def __init__(self, path: Path) -> None:
        self.options = PostgresOptions(shared_server().new_database())

    def open(self) -> PostgresStore:
        return PostgresStore(self.options, compression=True)

    async def restart(self, store: PostgresStore) -> PostgresStore:
        await store.close()
        return self.open()

    def open_checkpoint(self, path: Path) -> RocksDbStore:
        return RocksDbStore.open(path, SMALL, compression=True)


class EncryptedPostgresBackend(PostgresBackend):
    name = "postgres-encrypted"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.keys = path / "keys"

    def open(self) -> PostgresStore:
        return PostgresStore(self.options, compression=True, cipher=cipher(self.keys))

    def open_checkpoint(self, path: Path) -> RocksDbStore:
        return RocksDbStore.open(path, SMALL, compression=True, cipher=cipher(self.keys))
