"""A node of a cluster in which each has its own journal: RocksDB in its data directory, one partition a node.

    DATA/node            what is about the node itself
    DATA/partitions/N    partition N, while this node has it

A partition belongs to the node that made it. etcd remembers which one has its journal, under which epoch. Nobody else
can read it, so that every request about it goes there, and lists are put together from what each node has.

A partition moves through the place that journals are shipped to: whoever has it ships to the end, stops and says how
far it went; or it is lost, and another one takes what has arrived, if it may. The next owner first claims the place
(recovery/owners.py), then restores, then says in etcd that the journal is here, and only then lets its runs go on.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from knhk.api.cluster import cluster_handlers
from knhk.api.partitions import apart_of, partition_handlers
from knhk.api.places import HOME
from knhk.bootstrap.cluster import Cluster
from knhk.bootstrap.common_time import go_by
from knhk.bootstrap.guest import Guest
from knhk.bootstrap.node import Node
from knhk.bootstrap.partitions import config_at
from knhk.bootstrap.recovery import NodeRecovery
from knhk.bootstrap.takeover import Restored, restored
from knhk.cluster.view import Home
from knhk.config import Config
from knhk.domain.errors import BackupCorrupt, InvalidConfiguration, JournalMissing, KnhkError
from knhk.engine.control import Control
from knhk.persistence.leased import LeasedAppend
from knhk.persistence.partition_directories import FOLDER
from knhk.persistence.rocksdb import RocksDbStore
from knhk.processes.assignment import homes
from knhk.recovery import owners
from knhk.recovery.places import Place
from knhk.recovery.shipper import Shipper

_SHORT_S: Final = 5
_PAUSE_S: Final = 1.0
"""How long the next attempt waits after a partition could not be taken."""
_RESTART_LEASES: Final = 2.0
"""For so many lease times a node that has gone is waited for: it may only be starting again."""


def node_config(config: Config) -> Config:
    """The configuration of the node itself, which has no runs. Raises InvalidConfiguration."""
    path = config.persistence.path
    if (path / "CURRENT").exists():
        raise InvalidConfiguration(
            f"{path} has the journal of a node that worked alone, and in a cluster it would not be read",
            hint=f"Name another persistence.path. To go on with its runs, move the directory to {path / FOLDER / '0'} "
            "before the first node of a new cluster starts.",
        )
    if config.persistence.encryption:
        raise InvalidConfiguration(
            "persistence.encryption is for a node that works alone, and this one is one of a cluster",
            hint="Set it to false, and encrypt the disks.",
        )
    persistence = config.persistence.model_copy(update={"path": path / "node", "archive": ""})
    recovery = config.recovery.model_copy(update={"backup_to": ""})
    return config.model_copy(update={"persistence": persistence, "recovery": recovery})


class OwnJournals(Cluster):
    """The cluster as such a node sees it. `config` is the whole configuration, of which the node has its part."""

    shared = shares_blobs = False

    def __init__(self, node: Node, api: str, config: Config) -> None:
        super().__init__(node, api, movable=bool(config.recovery.backup_to))
        self._config = config
        self.guests: dict[int, Guest] = {}
        self.restored: dict[int, tuple[str, Restored]] = {}
        """What was restored of partitions that another node had."""
        self._shippers: dict[int, Shipper] = {}
        arrived = self._arrived if config.recovery.ship_before_acknowledging else None
        node.guard = lambda append: LeasedAppend(append, self.member.holds, arrived)

    # -- as the membership sees it

    async def prepare(self) -> None:
        self._go_by(await go_by(self.member.etcd, self._node.clock))

    async def take(self, partition: int) -> int:
        home = await self.member.home(partition)
        config = config_at(self._config, partition, self._path_of(partition))
        try:
            floor = await self._bring(partition, home, config)
            guest = await Guest.open(self._node, config, partition)
            try:
                epoch = await self._begin(partition, home, guest, floor)
            except BaseException:
                self._shippers.pop(partition, None)
                await guest.stop()
                raise
        except Exception:
            await asyncio.sleep(_PAUSE_S)
            raise
        self.guests[partition] = guest
        self._watch(partition, guest.node.engine)
        return epoch

    async def _bring(self, partition: int, home: Home, config: Config) -> int:
        """Have the journal of a partition here; the greatest epoch that it had elsewhere.

        Raises JournalMissing, BackupUnavailable, BackupCorrupt, Fenced.
        """
        path, me = config.persistence.path, self.member.node.node_id
        is_here, may_restore = (path / "CURRENT").exists(), self._config.cluster.takeover
        if home.holder == me and (is_here or not home.epoch):
            return await self._last_epoch(config, home)
        if home.holder == me and not may_restore:
            raise JournalMissing(f"{path} is not there, and this node had the journal of partition {partition} in it")
        place = await asyncio.to_thread(Place.of, config.recovery.backup_to, make=True)
        found = await asyncio.to_thread(owners.newest, place)
        epoch = max(home.epoch, 0 if found is None else found.epoch) + 1
        await asyncio.to_thread(owners.claim, place, owners.Claim(epoch, me, self._node.clock.now_ns()))
        done = await restored(config)
        if done.height < home.through:
            raise BackupCorrupt(
                f"node {home.holder!r} has handed partition {partition} over up to block {home.through}, and only "
                f"{done.height} blocks of it are in {config.recovery.backup_to}"
            )
        self.restored[partition] = home.holder, done
        lossless = home.through >= 0 or self._config.recovery.ship_before_acknowledging
        self._log.info(
            "a partition was handed over" if lossless else "a partition was taken over",
            partition=partition,
            of=home.holder,
            epoch=epoch,
            height=done.height,
            receipts=done.receipts,
            recovered_to=done.recovered_to,
            old_data=done.kept,
            missing=done.missing,
        )
        return epoch - 1

    async def _last_epoch(self, config: Config, home: Home) -> int:
        """The greatest epoch of a partition that this node has, by etcd and by the place, if that answers."""
        if not config.recovery.backup_to:
            return home.epoch
        try:
            place = await asyncio.to_thread(Place.of, config.recovery.backup_to, make=True, timeout_s=_SHORT_S)
            found = await asyncio.to_thread(owners.newest, place, home.epoch)
        except KnhkError as error:
            self._log.warning("where journals are shipped to does not answer", reason=error.message)
            return home.epoch
        return home.epoch if found is None else found.epoch

    async def _begin(self, partition: int, home: Home, guest: Guest, floor: int) -> int:
        """Say whose the partition is from now on, and only then let its runs go on; the epoch."""
        store = guest.node.store
        assert isinstance(store, RocksDbStore)
        await store.raise_epoch(partition, floor)
        epoch = store.epoch_of(partition) + 1
        if partition == HOME:
            guest.node.engine.signals.apart = apart_of(self.router, self._node.clock.now_ns)
        await self.member.settle(partition, Home(home.origin, self.member.node.node_id, epoch))
        if guest.recovery is not None and guest.recovery.shipper is not None:
            self._shippers[partition] = guest.recovery.shipper
        await guest.begin()
        return epoch

    async def _arrived(self, partition: int, height: int, limit_s: float) -> bool:
        return await self._shippers[partition].arrived(height, limit_s)

    async def give_up(self, partition: int) -> None:
        """Hand a partition over with nothing lost. Raises what the place raises: then it stays here."""
        guest, shipper = self.guests[partition], self._shippers[partition]
        try:
            await shipper.ship_all()  # most of it, and if the place fails nothing has stopped yet
            if not await guest.node.engine.drain(self._grace_s):
                self._log.info("a partition moves with work under way", partition=partition)
            await guest.node.halt()
            through = await shipper.ship_all()
            home = await self.member.home(partition)
            await self.member.settle(partition, msgspec.structs.replace(home, through=through))
        except KnhkError:
            await asyncio.sleep(_PAUSE_S)
            if partition not in self._node.engines:  # it is ours still
                await self.drop(partition)
                await self.take(partition)
            raise
        await self.drop(partition)

    async def drop(self, partition: int) -> None:
        self._halted.pop(partition, None)
        self._shippers.pop(partition, None)
        guest = self.guests.pop(partition, None)
        if guest is not None:
            await guest.stop()

    # -- as the API sees it

    def homes(self, key: bytes) -> Sequence[int]:
        return homes(key, self.partitions)

    def somewhere(self) -> str | None:
        others = sorted(self.others())
        self._turn += 1
        return others[self._turn % len(others)] if others else None

    def absent(self, partition: int) -> str:
        home = self.member.view.homes.get(partition)
        since = None if home is None else self.member.gone.get(home.holder)
        if home is None or since is None or self.member.settings.takeover:
            return ""
        if self.member.now() - since < _RESTART_LEASES * self.member.settings.ttl_s:
            return ""
        return f"partition {partition} is on node {home.holder!r}, which is not in the cluster"

    def listing(self, partition: int) -> Control | None:
        return self.local(partition)

    async def projected(self) -> None:
        for partition in range(self.partitions):
            if not await self.projected_here(partition):
                await self.router.ask(partition, f"/partitions/{partition}/projected")

    async def projected_here(self, partition: int) -> bool:
        """Wait until the lists of a partition show what is committed now; False if it is not here."""
        guest = self.guests.get(partition)
        if guest is None or self.local(partition) is None:
            return False
        head = await guest.node.store.head(partition)
        if head is not None:
            await guest.node.engine.projector.reached(head.block().height)
        return True

    # -- as operators and the server see it

    @property
    def recoveries(self) -> Mapping[int, NodeRecovery]:
        return {one: guest.recovery for one, guest in self.guests.items() if guest.recovery is not None}

    def handlers(self) -> list[Any]:
        return [*cluster_handlers(self), *partition_handlers(self)]

    def here(self) -> dict[str, Any]:
        shown = super().here()
        for partition, (holder, done) in self.restored.items():
            if (one := shown["partitions"].get(str(partition))) is not None:
                one["restored"] = {"of": holder, **msgspec.to_builtins(done)}
        return shown

    def health(self) -> str:
        found = [super().health()]
        for partition, guest in sorted(self.guests.items()):
            said = (f"partition {partition}: {duty.health()}" for duty in guest.duties if duty.health() != "ok")
            found += said
        found += [f"partition {one}: {why}" for one, why in sorted(self.member.stuck.items())]
        return "; ".join(one for one in found if one != "ok") or "ok"

    def can_admit(self) -> tuple[bool, str]:
        admits, why = super().can_admit()
        if admits and not self.open() and not self.others():
            return False, "no node has a partition"
        return admits, why

    async def leave(self, grace_s: float) -> None:
        """Give everything away if others may have it; else let what runs end or rest, since this node will be back."""
        if not self._config.cluster.takeover:
            engines = list(self._node.engines.values())
            if not all(await asyncio.gather(*(engine.drain(grace_s) for engine in engines))):
                self._log.info("work is left; it goes on from its receipts at the next start")
            grace_s = 0.0
        await super().leave(grace_s)

    async def _open(self) -> None:
        """The node's own store is open already."""

    def _path_of(self, partition: int) -> Path:
        return self._config.persistence.path / FOLDER / str(partition)
