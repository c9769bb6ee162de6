"""One process's engine on its store, without servers and duties."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import uvloop

from knhk.actions.catalogue import catalogue
from knhk.actions.registry import Registry
from knhk.bootstrap.blobs import blobs_of
from knhk.bootstrap.stores import open_store, projections_of
from knhk.config import Config, Loaded
from knhk.domain.compile_triggers import SECRETS
from knhk.domain.errors import Corrupt, InvalidConfiguration
from knhk.engine.committer import CommitterStatistics
from knhk.engine.leases import WorkerLimits
from knhk.engine.service import Engine, Settings
from knhk.engine.workers import Workers
from knhk.observability.metrics import Metrics
from knhk.observability.uptime import Uptime
from knhk.persistence.blob_area import BlobArea
from knhk.persistence.blob_check import references
from knhk.persistence.blob_keeping import BlobKeeper
from knhk.persistence.rocksdb import RocksDbStore
from knhk.platform.clock import SystemClock
from knhk.platform.ids import SnowflakeIds
from knhk.ports.append import Append
from knhk.ports.blobs import NoBlobs
from knhk.ports.fold import Fold
from knhk.security.signing import Ed25519Signer

if TYPE_CHECKING:
    from knhk.persistence.postgres import PostgresStore

    Store = RocksDbStore | PostgresStore

PARTITION: Final = 0
_MILLISECOND_NS: Final = 1_000_000


class Node:
    """One process's engine with its store, ready to be started.

    `partition` is the one that it works on, unless it is one of a cluster. A node may stand `beside` another one in the
    same process: it works on a partition of its own, in a data directory of its own, and shares all else.
    """

    def __init__(
        self,
        config: Config,
        partition: int = PARTITION,
        beside: "Node | None" = None,
        store: "Store | None" = None,
    ) -> None:
        self.config, self.partition = config, partition
        self.store = open_store(config) if store is None else store
        self.last_used_ns = 0
        """When the journal grew for the last time before this process (Unix time); 0: never, or not started yet."""
        if beside is None:
            self._alone()
        else:
            self._share(beside)
        shares = beside if config.persistence.url else None
        """The node whose blobs and actions this one uses too: in a database there is one of each for all."""
        self.blobs: BlobArea | NoBlobs = self._own_blobs() if shares is None else shares.blobs
        self.registry: Registry = catalogue(config.actions, self.blobs) if shares is None else shares.registry
        self.keeper = None if self.area is None else BlobKeeper(self.store, self.area)
        """What commits go through so that their blobs stay."""
        self.engine = self.engine_of(partition)
        """The engine of a node that works alone; in a cluster one that is never started, and only reads."""

    @property
    def area(self) -> BlobArea | None:
        """Where the blobs of this node's runs are."""
        return self.blobs if isinstance(self.blobs, BlobArea) else None

    def _own_blobs(self) -> BlobArea | NoBlobs:
        return blobs_of(
            self.config, self.store, self.partition, lambda: self.ids.next_id(self.partition), self.clock.now_ns
        )

    def _alone(self) -> None:
        self.clock = SystemClock()
        self.ids = SnowflakeIds(self.clock)
        self.signer = Ed25519Signer.load_or_create(self.config.persistence.key_path, self.clock.now_ns())
        self.metrics = Metrics()
        self.uptime = Uptime(self.store, self.clock)
        self.folds: list[Fold] = [self.metrics]
        """What sees every committed event. Duties may add theirs before the start."""
        self.commits = CommitterStatistics()
        self.rejections: dict[str, int] = {}
        self.workers = Workers(self.clock, settings(self.config).workers)
        """The remote workers of all engines."""
        self.engines: dict[int, Engine] = {}
        """The engines that run, by partition."""
        self.guard: Callable[[Append], Append] = lambda append: append
        """What the commits of those beside this node go through."""
        self.stores = {self.partition: self.store}
        """The stores of this process, by partition; one in a database serves all."""

    def _share(self, other: "Node") -> None:
        self.clock, self.signer, self.ids = other.clock, other.signer, other.ids
        self.metrics, self.uptime, self.commits = other.metrics, other.uptime, other.commits
        self.folds, self.rejections, self.workers = [self.metrics], other.rejections, other.workers
        self.engines, self.stores, self.guard = other.engines, other.stores, other.guard
        self.stores[self.partition] = self.store

    def engine_of(self, partition: int) -> Engine:
        """A new engine for a partition, ready to be started once. What is counted is counted for all together."""
        engine = Engine(
            settings(self.config, partition),
            self.registry,
            append=self.guard(self.store if self.keeper is None else self.keeper),
            journal=self.store,
            projections=projections_of(self.store, partition),
            storage=self.store,
            signer=self.signer,
            clock=self.clock,
            ids=self.ids,
            rng=random.Random(),
            folds=self.folds,
            workers=self.workers,
            blobs=self.blobs,
        )
        engine.committer.statistics = self.commits
        self.rejections.update({name: self.rejections.get(name, 0) for name in engine.admission.rejections})
        engine.admission.rejections = self.rejections
        return engine

    async def start(self) -> None:
        """Take over the journal and go on with what is in it."""
        await self.store.settle_erasures()
        await self.open_blobs()
        await self.refuse_retired_key()
        await self.start_engine(self.partition, self.engine)

    async def open_blobs(self) -> None:
        """Make the blob area ready. Where its marks cannot be made anew, nothing is ever removed from it."""
        if self.area is not None:
            await asyncio.to_thread(self._open_blobs, self.area)

    def _open_blobs(self, area: BlobArea) -> None:
        area.open()
        if not area.is_marked:
            has_blobs = next(area.names(), None) is not None
            with suppress(Corrupt):
                area.rebuild(references(self.store.scanner().scan_payloads()) if has_blobs else iter(()))

    async def start_engine(self, partition: int, engine: Engine) -> None:
        """Take a partition over and go on with what is in it."""
        head = await self.store.head(partition)
        if head is not None:
            self.last_used_ns = head.block().at_ns
            # The next millisecond: ids are made of it, and those of this one are given out.
            self.clock.not_before((head.block().at_ns // _MILLISECOND_NS + 1) * _MILLISECOND_NS)
        self.engines[partition] = engine
        await engine.start()

    async def refuse_retired_key(self) -> None:
        """Raise InvalidConfiguration if what this node signs would not be valid."""
        own = self.signer.public_key.key_id
        if any(key.key_id == own and key.retired_at_ns for key in await self.store.keys()):
            raise InvalidConfiguration(
                f"the signing key {own} was retired: a block that it signs now would not be valid",
                hint="Put back the key that replaced it, or take the file away, and a new key is made.",
            )

    def let_go(self) -> None:
        """Let nobody wait for work, or for the end of a run, any more."""
        self.workers.close()
        for engine in self.engines.values():
            engine.let_go()

    async def stop(self) -> None:
        """Stop at once and close the store."""
        for engine in list(self.engines.values()):
            await engine.stop()
        await self.store.close()

    async def halt(self) -> None:
        """Stop the engine; the store stays open."""
        engine = self.engines.pop(self.partition, None)
        if engine is not None:
            await engine.stop()

    async def leave(self) -> None:
        """Stop a node that stands beside another one, which goes on."""
        await self.halt()
        del self.stores[self.partition]
        if isinstance(self.store, RocksDbStore):
            await self.store.close()
        else:
            self.store.release(self.partition)


def settings(config: Config, partition: int = PARTITION) -> Settings:
    """The engine's limits from the configuration."""
    platform, persistence = config.platform, config.persistence
    return Settings(
        node_id=platform.node_id,
        max_active=platform.max_concurrent_workflows,
        max_queued=platform.max_queued_workflows,
        max_concurrent_steps=platform.max_concurrent_steps,
        threads=config.actions.threads,
        default_timeout_ns=platform.workflow_timeout_ns,
        tick_ns=platform.tick_ns,
        max_descriptor_bytes=config.api.max_body_bytes,
        max_steps=config.api.max_steps,
        max_payload_bytes=persistence.max_payload_bytes,
        min_free_bytes=persistence.min_free_bytes,
        workers=WorkerLimits(
            lease_ns=config.workers.lease_ns,
            max_lease_ns=config.workers.max_lease_ns,
            max_deliveries=config.workers.max_deliveries,
        ),
        partition=partition,
        leading=partition == PARTITION,
        webhook_secrets={name: value for name, value in os.environ.items() if SECRETS.fullmatch(name)},
        sampling_rate=config.observability.sampling_rate if config.observability.endpoint else None,
    )


@asynccontextmanager
async def embedded(loaded: Loaded) -> AsyncIterator[Engine]:
    """An engine without servers, for one process's own use; stopped at the end of the block.

    Raises what opening the store raises.
    """
    node = Node(loaded.config)
    try:
        await node.start()
        yield node.engine
    finally:
        await node.stop()


def run_async(main: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine on a uvloop to its end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
