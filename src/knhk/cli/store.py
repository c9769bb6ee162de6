"""Journals, read only: works beside a running server and without one, and never makes or changes anything."""

import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeVar

import typer

from knhk.cli.files import read_public_key
from knhk.cli.options import load_config
from knhk.cli.output import note
from knhk.domain.errors import NotFound

if TYPE_CHECKING:
    from knhk.config.sections import Persistence
    from knhk.persistence.blob_area import BlobArea
    from knhk.persistence.cipher import Cipher
    from knhk.persistence.rocksdb import RocksDbStore
    from knhk.persistence.rocksdb_options import StoreOptions
    from knhk.persistence.scanner import ScannedJournal
    from knhk.persistence.verification import Trust

Result = TypeVar("Result")
RING_FILE: Final = "data.keys"  # as security.key_ring says, which takes longer to import


class DataDirectory(NamedTuple):
    """A data directory, and the settings that say where its keys are, or which database is meant instead of it."""

    path: Path
    persistence: "Persistence"

    @property
    def name(self) -> str:
        """What is shown of it: the database without its password, or the path."""
        from knhk.persistence.postgres_options import public_name

        return public_name(self.persistence.url) or str(self.path)


def data_directory(context: typer.Context, data: Path | None, config: Path | None) -> DataDirectory:
    """--data, or else what the configuration's `persistence` section names.

    The keys of a directory given with --data are those beside it, or else, as for a snapshot, the configuration's.
    """
    beside = load_config(config, context=context, data=data).config.persistence
    if data is None:
        return DataDirectory(beside.path, beside)
    configured = load_config(config, context=context).config.persistence
    key_path = (beside if (beside.key_path / RING_FILE).exists() else configured).key_path
    return DataDirectory(data, beside.model_copy(update={"key_path": key_path}))


def others_in(directory: DataDirectory) -> list[DataDirectory]:
    """The directories of the further partitions of a data directory that more than one process worked on.

    Raises JournalCorrupt if one is missing.
    """
    from knhk.persistence.partition_directories import directory_of, partitions_in

    count = 1 if directory.persistence.url else partitions_in(directory.path)
    return [directory._replace(path=directory_of(directory.path, one)) for one in range(1, count)]


def directory_with(directory: DataDirectory, workflow_id: int) -> DataDirectory:
    """The directory that has a workflow: that of its partition, if there are several, else the one that is named."""
    from knhk.domain.identifier import partition_of

    of_partition = dict(enumerate([directory, *others_in(directory)]))
    return of_partition.get(partition_of(workflow_id), directory)


@contextmanager
def opened(directory: DataDirectory) -> "Iterator[RocksDbStore]":
    """The store in a data directory, as it is now. Without its keys, what is encrypted in it stays so.

    Raises:
        NotFound: there is no such directory.
        InvalidConfiguration, JournalCorrupt, StorageUnavailable: as rocksdb_opening.open_database says.
    """
    import asyncio

    path = directory.path
    if not path.exists():
        raise NotFound(
            f"there is no data directory {path}",
            hint="Name the right one with --data or the configuration, or make a new one with `knhk init`.",
        )
    store = open_reader(directory)
    try:
        yield store
    finally:
        asyncio.run(store.close())


def open_reader(directory: DataDirectory) -> "RocksDbStore":
    """The store in a data directory, for reading. Raises as `opened` does; close it."""
    from knhk.domain.errors import EncryptionKeyUnavailable
    from knhk.persistence.rocksdb import RocksDbStore

    try:
        return RocksDbStore.open(directory.path, _options(), read_only=True, cipher=cipher_of(directory))
    except EncryptionKeyUnavailable as error:  # the ring is another's
        note(f"Without the encryption key: {error.message}")
        return RocksDbStore.open(directory.path, _options(), read_only=True)


def cipher_of(directory: DataDirectory) -> "Cipher":
    """What opens the rows of a data directory; without its keys, those in clear alone, and a note says so."""
    from knhk.bootstrap.stores import key_ring
    from knhk.domain.errors import EncryptionKeyUnavailable
    from knhk.persistence.cipher import Cipher

    try:
        return Cipher(key_ring(directory.persistence, lambda: False, may_create=False))
    except EncryptionKeyUnavailable as error:
        note(f"Without the encryption key: {error.message}")
        return Cipher()


def _options() -> "StoreOptions":
    from knhk.persistence.rocksdb_options import StoreOptions

    return StoreOptions(block_cache_size_bytes=64 << 20, max_background_jobs=1)


def reading(directory: DataDirectory, read: "Callable[[ScannedJournal], Coroutine[Any, Any, Result]]") -> Result:
    """What a coroutine reads from the store, in a data directory or a database. Raises as `opened` does.

    RocksDB never waits for anything, so that asyncio's own handling of Ctrl-C would only come into effect at the end.
    """
    import asyncio

    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        if directory.persistence.url:
            return asyncio.run(_in_database(directory, read))
        with opened(directory) as store:
            return asyncio.run(read(store))
    finally:
        signal.signal(signal.SIGINT, before)


async def _in_database(
    directory: DataDirectory, read: "Callable[[ScannedJournal], Coroutine[Any, Any, Result]]"
) -> Result:
    from knhk.bootstrap.stores import postgres_store

    store = postgres_store(directory.persistence, read_only=True, cipher=cipher_of(directory))
    try:
        return await read(store)
    finally:
        await store.close()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def blobs_in(directory: DataDirectory, store: "ScannedJournal") -> "BlobArea | None":
    """The blobs of a data directory, or those beside a database; None if there is no place for them."""
    from knhk.persistence.blob_area import BlobArea
    from knhk.persistence.rocksdb import RocksDbStore

    if isinstance(store, RocksDbStore):
        return BlobArea.reader(directory.path, store.cipher.keys)
    from knhk.persistence.postgres import PostgresStore

    path, keys = directory.persistence.blobs.path, store.cipher.keys if isinstance(store, PostgresStore) else None
    return None if path is None else BlobArea(path, inline_bytes=0, max_bytes=0, min_free_bytes=0, keys=keys)


async def trust_of(store: "ScannedJournal", pinned: list[Path] | None) -> "Trust":
    """Trust in the pinned keys, or else in those that are registered in the journal."""
    from knhk.persistence.verification import Trust
    from knhk.security.signing import verify

    keys = [read_public_key(path) for path in pinned] if pinned else await store.keys()
    return Trust.of(keys, verify)
