"""A node of a cluster in which each has its own journal: RocksDB in its data directory, one partition a node.

    DATA/node            what is about the node itself
    DATA/partitions/N    partition N, while this node has it

A partition belongs to the node that made it. etcd remembers which one has its journal, under which epoch. Nobody else
can read it, so that every request about it goes there, and lists are put together from what each node has.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from knhk.api.cluster import cluster_handlers
from knhk.api.partitions import apart_of, partition_handlers
from knhk.api.places import HOME
from knhk.bootstrap.cluster import Cluster
from knhk.bootstrap.common_time import go_by
from knhk.bootstrap.guest import Guest
from knhk.bootstrap.node import Node
from knhk.bootstrap.partitions import config_at
from knhk.bootstrap.recovery import NodeRecovery
from knhk.cluster.view import Home
from knhk.config import Config
from knhk.domain.errors import InvalidConfiguration, JournalMissing
from knhk.engine.control import Control
from knhk.persistence.leased import LeasedAppend
from knhk.persistence.partition_directories import FOLDER
from knhk.persistence.rocksdb import RocksDbStore
from knhk.processes.assignment import homes

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
        super().__init__(node, api)
        self._config = config
        self.guests: dict[int, Guest] = {}
        node.guard = lambda append: LeasedAppend(append, self.member.holds)

    # -- as the membership sees it

    async def prepare(self) -> None:
        self._go_by(await go_by(self.member.etcd, self._node.clock))

    async def take(self, partition: int) -> int:
        home = await self.member.home(partition)
        config = config_at(self._config, partition, self._path_of(partition))
        try:
            self._require_journal(partition, home)
            guest = await Guest.open(self._node, config, partition)
            try:
                epoch = await self._begin(partition, home, guest)
            except BaseException:
                await guest.stop()
                raise
        except Exception:
            await asyncio.sleep(_PAUSE_S)
            raise
        self.guests[partition] = guest
        self._watch(partition, guest.node.engine)
        return epoch

    def _require_journal(self, partition: int, home: Home) -> None:
        path = self._path_of(partition)
        if home.epoch and not (path / "CURRENT").exists():
            raise JournalMissing(f"{path} is not there, and this node had the journal of partition {partition} in it")

    async def _begin(self, partition: int, home: Home, guest: Guest) -> int:
        """Say whose the partition is from now on, and only then let its runs go on; the epoch."""
        store = guest.node.store
        assert isinstance(store, RocksDbStore)
        await store.raise_epoch(partition, home.epoch)
        epoch = store.epoch_of(partition) + 1
        if partition == HOME:
            guest.node.engine.signals.apart = apart_of(self.router, self._node.clock.now_ns)
        await self.member.settle(partition, Home(home.origin, self.member.node.node_id, epoch))
        await guest.begin()
        return epoch

    async def drop(self, partition: int) -> None:
        self._halted.pop(partition, None)
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

    async def _open(self) -> None:
        """The node's own store is open already."""

    def _path_of(self, partition: int) -> Path:
        return self._config.persistence.path / FOLDER / str(partition)
