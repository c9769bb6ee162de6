"""What a restore drill needs of the engine and of the live data directory, from the configuration."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from knhk.actions.catalogue import catalogue
from knhk.bootstrap.node import settings
from knhk.bootstrap.partitions import config_of
from knhk.bootstrap.stores import open_store, postgres_store
from knhk.config import Config
from knhk.domain.errors import KnhkError
from knhk.domain.event import RecordDetail
from knhk.engine.loader import Loader
from knhk.engine.plans import Plans
from knhk.persistence.partition_directories import partitions_in
from knhk.persistence.rocksdb import RocksDbStore
from knhk.recovery.drill import Fold

if TYPE_CHECKING:
    from knhk.persistence.postgres import PostgresStore


def fold_of(config: Config) -> Fold:
    """Folds a run as a start does, with the actions of this configuration."""
    limits = settings(config)
    plans = Plans(
        catalogue(config.actions).traits(),
        max_bytes=limits.max_descriptor_bytes,
        max_steps=limits.max_steps,
        default_timeout_ns=limits.default_timeout_ns,
        tick_ns=limits.tick_ns,
    )

    async def fold(store: RocksDbStore, workflow_id: int) -> None:
        first = (await store.receipts(workflow_id))[0]
        if first.has_body and not isinstance(first.receipt().typed_detail(), RecordDetail):
            await Loader(store, plans).load(workflow_id)

    return fold


def newest_blocks(config: Config) -> dict[int, int]:
    """When the newest block of each partition of the live journal was committed (Unix time in ns).

    One that cannot be read, or has no block, is left out.
    """
    found: dict[int, int] = {}

    async def read(store: "RocksDbStore | PostgresStore", partitions: Iterable[int]) -> None:
        try:
            for partition in partitions:
                head = await store.head(partition)
                if head is not None:
                    found[partition] = head.block().at_ns
        finally:
            await store.close()

    async def read_all() -> None:
        if config.persistence.url:
            store = postgres_store(config.persistence, read_only=True)
            await read(store, sorted(await store.partitions()))
            return
        for partition in range(partitions_in(config.persistence.path)):
            with suppress(KnhkError):
                await read(open_store(config_of(config, partition), read_only=True), [partition])

    with suppress(KnhkError):
        asyncio.run(read_all())
    return found
