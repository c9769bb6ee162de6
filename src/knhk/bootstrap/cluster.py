"""A node of a cluster: its engines come and go as etcd says, and its API knows where everything is."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from knhk import __version__
from knhk.api.cluster import cluster_handlers
from knhk.api.routed_workers import RoutedWorkers
from knhk.api.router import Router, give_event
from knhk.bootstrap.cluster_status import moving, status
from knhk.bootstrap.common_time import describe, go_by
from knhk.bootstrap.node import Node
from knhk.bootstrap.recovery import NodeRecovery
from knhk.cluster import view
from knhk.cluster.assignment import partition_of_key
from knhk.cluster.etcd import Etcd
from knhk.cluster.member import TICKS, Member, Settings
from knhk.cluster.view import Node as NodeEntry
from knhk.domain.errors import Corrupt, KnhkError, NotFound, PartitionMoving
from knhk.engine.control import Control
from knhk.engine.projector import FOLD
from knhk.engine.service import Engine
from knhk.observability.logs import get
from knhk.observability.readings import OK
from knhk.ports.scaler import Processes

if TYPE_CHECKING:
    from knhk.persistence.postgres import PostgresStore

_LOOK_S: Final = 0.05
_NS: Final = 1_000_000_000
_ETCD_TIMEOUT_SHARE: Final = 0.25
_KNOWN_AFTER: Final = 3
"""So many readings of etcd later, the others send nothing here any more."""


class Cluster:
    """Implements cluster.member.Partitions, api.routing.Places and api.cluster.ClusterFace for a node.

    All nodes have the journal in one database. See own_journals.py for those that have one each.
    """

    room: Final = "cluster"
    shared = shares_blobs = True
    exit_code = 0

    def __init__(self, node: Node, api: str, *, movable: bool = False) -> None:
        config = node.config.cluster
        self._node, self._log = node, get("knhk.cluster")
        self._grace_s = config.handover_grace_ns / _NS
        ttl_s = config.lease_ttl_ns // _NS
        self.wait_s = 4.0 * ttl_s
        self._halted: dict[int, str] = {}
        self._listers: dict[int, Control] = {}
        entry = NodeEntry(
            node.config.platform.node_id,
            config.advertise or api,
            __version__,
            node.clock.now_ns(),
            protocol=view.PROTOCOL,
            least=view.LEAST,
            own_journal=not self.shared,
        )
        self.member = Member(
            Settings(
                f"/knhk/{config.name}",
                config.partitions,
                ttl_s,
                movable=movable,
                takeover=config.takeover,
            ),
            entry,
            Etcd(config.etcd, ttl_s * _ETCD_TIMEOUT_SHARE),
            self,
            node.clock,
            self._log.info,
            time.monotonic,
        )
        self.router = Router(self)
        self.workers = RoutedWorkers(node.workers, self.router)
        self._turn = 0

    @property
    def _store(self) -> "PostgresStore":
        return cast("PostgresStore", self._node.store)

    @property
    def partitions(self) -> int:
        """How many partitions there are."""
        return self.member.partitions

    @property
    def recoveries(self) -> Mapping[int, NodeRecovery]:
        """What takes snapshots, by partition."""
        return {}

    # -- as the membership sees it

    async def prepare(self) -> None:
        self._go_by(await go_by(self._store, self._node.clock))

    def _go_by(self, wrong: str) -> None:
        if wrong:
            self._log.warning(wrong)

    async def take(self, partition: int) -> int:
        # Fence first: only then is it certain that no younger block, and no younger id, can come to be there.
        await self._store.acquire(partition)
        engine = self._node.engine_of(partition)
        engine.signals.elsewhere = self._give_event
        await self._node.start_engine(partition, engine)
        self._watch(partition, engine)
        return self._store.epoch_of(partition)

    async def give_up(self, partition: int) -> None:
        engine = self._node.engines.get(partition)
        if engine is not None and not await engine.drain(self._grace_s):
            self._log.info("a partition moves with work under way", partition=partition)
        await self.drop(partition)

    async def drop(self, partition: int) -> None:
        self._halted.pop(partition, None)
        engine = self._node.engines.pop(partition, None)
        if engine is not None:
            await engine.stop()
            self._store.release(partition)

    def _watch(self, partition: int, engine: Engine) -> None:
        assert engine.halted is not None
        engine.halted.add_done_callback(lambda halted: self._has_halted(partition, engine, halted.result()))

    def _has_halted(self, partition: int, engine: Engine, error: KnhkError) -> None:
        if self._node.engines.get(partition) is not engine:
            return
        if not isinstance(error, Corrupt):  # another has it, or what nobody foresaw: whoever takes it begins anew
            self._log.warning("refused", partition=partition, code=error.code, reason=error.message)
            self.member.lost(partition)
        else:  # whoever else took the partition would meet it too
            self._log.error("a partition has halted", partition=partition, code=error.code, reason=error.message)
            self._halted[partition] = error.message

    # -- as the API sees it

    @property
    def reader(self) -> Control:
        return self._node.engine.control

    def homes(self, key: bytes) -> Sequence[int]:
        return (partition_of_key(key, self.partitions),)

    def local(self, partition: int) -> Control | None:
        engine = self._node.engines.get(partition)
        return engine.control if engine is not None and self.member.owns(partition) else None

    def open(self) -> Sequence[int]:
        engines = self._node.engines
        return [
            one
            for one in self.member.owned
            if self.member.owns(one) and one in engines and not engines[one].admission.closed
        ]

    def remote(self, partition: int) -> str | None:
        held = self.member.view.owners.get(partition)
        if held is None or held.owner.node_id == self.member.node.node_id or not held.owner.epoch:
            return None
        return self.member.view.api_of(partition)

    def somewhere(self) -> str | None:
        others = sorted(
            node.api
            for name, node in self.member.view.nodes.items()
            if name != self.member.node.node_id and not node.leaving
        )
        self._turn += 1
        return others[self._turn % len(others)] if others else None

    def others(self) -> Sequence[str]:
        nodes = self.member.view.nodes
        owners = {held.owner.node_id for held in self.member.view.owners.values()}
        return [node.api for name, node in nodes.items() if name in owners and name != self.member.node.node_id]

    def is_there(self, url: str) -> bool:
        return any(node.api == url for node in self.member.view.nodes.values())

    def absent(self, partition: int) -> str:
        """Why nobody will own a partition soon; empty if it is worth waiting."""
        return ""

    def listing(self, partition: int) -> Control | None:
        control = self.local(partition)
        if control is not None:
            return control
        if partition not in self._listers:
            self._listers[partition] = self._node.engine_of(partition).control
        return self._listers[partition]

    async def projected(self) -> None:
        """Wait until the lists show what is committed now, in all partitions. Raises PartitionMoving."""
        over = asyncio.get_running_loop().time() + self.wait_s
        for partition in range(self.partitions):
            head = await self._store.head(partition)
            projections = self._store.projections_of(partition)
            while head is not None and await projections.cursor(FOLD) < head.block().height:
                if asyncio.get_running_loop().time() >= over:
                    raise PartitionMoving(f"the lists of partition {partition} are behind", retry_after_s=1.0)
                await asyncio.sleep(_LOOK_S)

    async def _give_event(self, workflow_id: int, record_id: int) -> bool:
        return await give_event(self.router, workflow_id, record_id)

    # -- as operators see it

    @property
    def name(self) -> str:
        """The cluster's name in etcd."""
        return self._node.config.cluster.name

    @property
    def lease_left_s(self) -> float:
        """How long this node may go on without etcd, in seconds."""
        left_s = self.member.deadline - self.member.now()
        return round(max(0.0, left_s), 2) if self.member.is_member else 0.0

    async def status(self) -> dict[str, Any]:
        return await status(self)

    def here(self) -> dict[str, Any]:
        return {
            "node_id": self.member.node.node_id,
            "member": self.member.is_member,
            "lease_left_s": self.lease_left_s,
            "partitions": {
                str(number): {
                    "active": len(engine.scheduler.active),
                    "lag_blocks": max(0, engine.committer.height - engine.projector.cursor),
                }
                for number, engine in self._node.engines.items()
            },
        }

    async def drain(self, node_id: str, *, drained: bool) -> None:
        if drained and node_id not in self.member.view.nodes:
            raise NotFound(f"there is no node {node_id!r} in the cluster", hint="See `knhk cluster status`.")
        await self.member.drain(node_id, drained=drained)

    async def rebalance(self) -> int:
        seen = self.member.view
        for node_id in seen.drained:
            await self.member.drain(node_id, drained=False)
        return moving(seen, self.member.wanted(msgspec.structs.replace(seen, drained=frozenset())))

    # -- as the server sees it

    async def start(self) -> None:
        """Join the cluster."""
        await self._open()
        await self._node.open_blobs()
        await self._node.refuse_retired_key()
        await self.member.start()

    async def _open(self) -> None:
        await self._store.open()

    async def leave(self, grace_s: float) -> None:
        """Give everything away, then leave; returns when the others have had the time to learn of it."""
        await self.member.leave(grace_s)
        await asyncio.sleep(_KNOWN_AFTER * self.member.settings.ttl_s / TICKS)
        if not self.shared:
            self.router.hurry()

    async def stop(self) -> None:
        """Let go of everything at once; safe after `leave`."""
        await self.member.stop()
        await self.workers.close()
        await self.router.close()

    def ready(self, _api: str, _operations: str) -> None:
        """The others have learned from etcd where this node is."""

    def for_scaling(self) -> "tuple[Cluster | None, Processes | None]":
        """The cluster, if this is one, and what changes the number of processes, if something does."""
        return self, None

    def handlers(self) -> list[Any]:
        """Routes of the API that only a cluster has."""
        return cluster_handlers(self)

    def health(self) -> str:
        """Whether this node is well as one of several."""
        if self._halted:
            return f"{len(self._halted)} partition(s) have halted: {next(iter(self._halted.values()))}"
        found = self.member.health()
        return found if found != OK else describe(self._node.clock) or OK

    def can_admit(self) -> tuple[bool, str]:
        """Whether requests should come here."""
        if not self.member.is_member:
            return False, self.health()
        if self.member.node.leaving:
            return False, "shutting down"
        return True, ""
