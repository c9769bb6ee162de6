"""What a restore drill needs of the engine and of the live data directory, from the configuration."""

import asyncio
from typing import TYPE_CHECKING

from knhk.actions.catalogue import catalogue
from knhk.bootstrap.node import PARTITION, settings
from knhk.bootstrap.stores import open_store
from knhk.config import Config
from knhk.domain.errors import KnhkError
from knhk.domain.event import RecordDetail
from knhk.engine.loader import Loader
from knhk.engine.plans import Plans
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


def newest_block_ns(config: Config) -> int:
    """When the live journal's newest block was committed (Unix time in ns); 0 if it cannot be read."""

    async def read(store: "RocksDbStore | PostgresStore") -> int:
        head = await store.head(PARTITION)
        await store.close()
        return 0 if head is None else head.block().at_ns

    try:
        return asyncio.run(read(open_store(config, read_only=True)))
    except KnhkError:
        return 0
