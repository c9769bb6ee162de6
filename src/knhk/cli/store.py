"""Data directories, read only: works beside a running server and without one, and never makes or changes anything."""

import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from knhk.cli.files import read_public_key
from knhk.domain.errors import NotFound

if TYPE_CHECKING:
    from knhk.persistence.rocksdb import RocksDbStore
    from knhk.persistence.verification import Trust

Result = TypeVar("Result")


@contextmanager
def opened(path: Path) -> "Iterator[RocksDbStore]":
    """The store in a data directory, as it is now.

    Raises:
        NotFound: there is no such directory.
        InvalidConfiguration, JournalCorrupt, StorageUnavailable: as rocksdb_opening.open_database says.
    """
    import asyncio

    from knhk.persistence.rocksdb import RocksDbStore
    from knhk.persistence.rocksdb_options import StoreOptions

    if not path.exists():
        raise NotFound(
            f"there is no data directory {path}",
            hint="Name the right one with --data or the configuration, or make a new one with `knhk init`.",
        )
    options = StoreOptions(block_cache_size_bytes=64 << 20, max_background_jobs=1)
    store = RocksDbStore.open(path, options, read_only=True)
    try:
        yield store
    finally:
        asyncio.run(store.close())


def reading(path: Path, read: "Callable[[RocksDbStore], Coroutine[Any, Any, Result]]") -> Result:
    """What a coroutine reads from the store in a data directory. Raises as `opened` does.

    Reading never waits for anything, so that asyncio's own handling of Ctrl-C would only come into effect at the end.
    """
    import asyncio

    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        with opened(path) as store:
            return asyncio.run(read(store))
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


async def trust_of(store: "RocksDbStore", pinned: list[Path] | None) -> "Trust":
    """Trust in the pinned keys, or else in those that are registered in the journal."""
    from knhk.persistence.verification import Trust
    from knhk.security.signing import verify

    keys = [read_public_key(path) for path in pinned] if pinned else await store.keys()
    return Trust.of(keys, verify)
