"""Snapshots and shipping of a node, from its configuration."""

import asyncio
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from knhk.bootstrap.blobs import blob_path
from knhk.bootstrap.clustered import has_own_journal, is_clustered, shares_journal
from knhk.bootstrap.node import PARTITION, Node
from knhk.bootstrap.partitions import config_of
from knhk.bootstrap.stores import open_store, postgres_options, store_options
from knhk.config import Config
from knhk.domain.errors import InvalidConfiguration
from knhk.persistence.blob_area import FOLDER
from knhk.persistence.partition_directories import partitions_in
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_database import Counters
from knhk.persistence.rocksdb_opening import open_database
from knhk.persistence.scanner import Progress
from knhk.persistence.sync import sync_path
from knhk.platform.clock import SystemClock
from knhk.ports.duty import Duty
from knhk.recovery.blob_shipping import BlobShipping
from knhk.recovery.drill_duty import DrillDuty
from knhk.recovery.durable_files import link_or_copy
from knhk.recovery.shipper import Shipper
from knhk.recovery.snapshot_duty import SnapshotDuty
from knhk.recovery.snapshots import Snapshot, Snapshots, prune, remove_leftovers
from knhk.recovery.whole import OF_ALL, compose
from knhk.security.signing import Ed25519Signer, verify


class NodeRecovery:
    """What a server does for the day on which its machine is lost."""

    def __init__(self, node: Node, config_file: Path | None = None) -> None:
        self._is_database = bool(node.config.persistence.url)
        self._leads = node.partition == PARTITION and not is_clustered(node.config)
        self.snapshots = snapshots_of(node)
        self.shipper = shipper_of(node)
        self.drills = drills_of(node, config_file)

    @property
    def duties(self) -> list[Duty]:
        """What works by itself. A snapshot of a database is a copy of it, and is made on request alone."""
        snapshots: list[Duty] = [] if self._is_database else [self.snapshots]
        drills: list[Duty] = [self.drills] if self._leads else []
        return [*snapshots, *([] if self.shipper is None else [self.shipper]), *drills]

    def figures(self) -> dict[str, float]:
        """For the metrics."""
        shipped = {} if self.shipper is None else self.shipper.figures()
        return {**self.snapshots.figures(), **shipped, **self.drills.figures()}


def snapshots_of(node: Node) -> SnapshotDuty:
    """The duty that takes and prunes a server's snapshots."""
    recovery = node.config.recovery
    snapshots = Snapshots(
        recovery.checkpoint_path,
        node.store,
        node.store,
        node.signer,
        node.clock,
        node.config.platform.node_id,
        None if node.area is None else node.area.path,
    )
    return SnapshotDuty(
        snapshots,
        node.store,
        node.clock,
        partition=node.partition,
        interval_ns=recovery.snapshot_interval_ns,
        keep=recovery.max_snapshots,
    )


def load_database(config: Config, data: Path, progress: Progress) -> None:
    """Fill the database of `persistence.url`, which must be empty, with what is in a data directory."""
    from knhk.persistence.postgres_load import load

    _bring_blobs(data / FOLDER, blob_path(config.persistence))
    options = store_options(config.persistence)
    database, heads = open_database(data, options, Counters(), read_only=True)
    try:
        asyncio.run(load(postgres_options(config.persistence), database, heads, progress))
    finally:
        database.close()


def _bring_blobs(source: Path, target: Path | None) -> None:
    """Put the blobs of a data directory where those of the database are; the next start finds out which are used.

    Raises InvalidConfiguration if there is no place for them.
    """
    found = list((source / "data").glob("??/*"))
    if not found:
        return
    if target is None:
        raise InvalidConfiguration(f"{source} has {len(found)} blobs, and persistence.blobs.path names no directory")
    for path in found:
        copy = target / "data" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not copy.exists():
            link_or_copy(path, copy)
        sync_path(copy.parent)
    (target / "marked").unlink(missing_ok=True)


def require_empty_database(config: Config) -> None:
    """Raises Conflict if the database of `persistence.url` has a journal."""
    from knhk.persistence.postgres_load import require_empty

    asyncio.run(require_empty(postgres_options(config.persistence)))


async def snapshot_offline(config: Config) -> Snapshot:
    """A snapshot of a data directory that no server holds. Raises what opening the stores and taking it raises."""
    clock = SystemClock()
    count = 1 if config.persistence.url else partitions_in(config.persistence.path)
    taken = [await _snapshot_offline(config_of(config, partition), clock) for partition in range(count)]
    if count == 1:
        return taken[0]
    return await asyncio.to_thread(compose_snapshot, config, clock, {one: its.path for one, its in enumerate(taken)})


async def _snapshot_offline(config: Config, clock: SystemClock) -> Snapshot:
    store = open_store(config)
    try:
        signer = Ed25519Signer.load_or_create(config.persistence.key_path, clock.now_ns())
        await store.register_key(signer.public_key)
        directory = config.recovery.checkpoint_path
        blobs = blob_path(config.persistence)
        return await Snapshots(directory, store, store, signer, clock, config.platform.node_id, blobs).take()
    finally:
        await store.close()


def compose_snapshot(config: Config, clock: SystemClock, parts: Mapping[int, Path]) -> Snapshot:
    """One snapshot of all partitions from one of each; the oldest such ones go. Blocks. Raises as `compose` does."""
    signer = Ed25519Signer.load_or_create(config.persistence.key_path, clock.now_ns())
    directory = config.recovery.checkpoint_path / OF_ALL
    remove_leftovers(directory)
    made = compose(parts, directory, signer, config.platform.node_id, clock.now_ns())
    prune(directory, config.recovery.max_snapshots)
    return made


def drills_of(node: Node, config_file: Path | None) -> DrillDuty:
    """The duty that restores backups on trial."""
    given = [] if config_file is None else ["--config", str(config_file)]
    command = [sys.executable, "-m", "knhk", "recover", "drill", "--output", "json", *given]
    return DrillDuty(
        command,
        lambda detail: node.engine.control.propose(detail, actor="recovery"),
        node.clock,
        interval_ns=node.config.recovery.drill_interval_ns,
    )


def shipper_of(node: Node) -> Shipper | None:
    """The duty that ships the journal; None if there is nowhere to ship it to. Raises InvalidConfiguration."""
    recovery = node.config.recovery
    if not recovery.backup_to:
        return None
    if shares_journal(node.config):
        raise InvalidConfiguration(
            "recovery.backup_to ships a node's own journal, and this node is one of a cluster that shares a database",
            hint="Leave it empty, and archive the database's own log (PostgreSQL: continuous archiving).",
        )
    return Shipper(
        recovery.backup_to,
        node.store.stored_rows,
        node.store,
        node.store,
        node.signer,
        node.clock,
        node_id=node.config.platform.node_id,
        partition=node.partition,
        check=verify,
        interval_ns=recovery.ship_interval_ns,
        longest_lag_ns=recovery.max_ship_lag_ns,
        blobs=None if node.area is None else BlobShipping(node.area),
        epoch=partial(_epoch_of, node) if has_own_journal(node.config) else lambda: 0,
    )


def _epoch_of(node: Node) -> int:
    assert isinstance(node.store, RocksDbStore)
    return node.store.epoch_of(node.partition)
