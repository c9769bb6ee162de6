"""A process of a server that has several: its engines come and go as the supervisor says."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from knhk.api.partitions import apart_of, partition_handlers
from knhk.api.places import HOME
from knhk.api.routed_workers import RoutedWorkers
from knhk.api.router import Router, give_event
from knhk.bootstrap.guest import Guest
from knhk.bootstrap.node import Node
from knhk.bootstrap.partitions import config_of
from knhk.bootstrap.recovery import NodeRecovery
from knhk.config import Config, Loaded
from knhk.domain.errors import DataDirectoryInUse, KnhkError, Refused
from knhk.engine.control import Control
from knhk.engine.service import Engine
from knhk.observability.logs import get
from knhk.ports.scaler import Processes
from knhk.processes.assignment import homes
from knhk.processes.channel import Channel, Plan, Report

if TYPE_CHECKING:
    from knhk.bootstrap.cluster import Cluster

WAIT_S: Final = 15.0
"""How long a request waits for a process that is being started again."""
_RETRY_S: Final = 0.2
_LATER_S: Final = 5.0


class Seat(NamedTuple):
    """A process's place among those of a server: its number, the server's configuration, and the supervisor."""

    number: int
    config: Config
    channel: Channel[Plan]


class Local:
    """Implements api.routing.Places for a process with a number, which always owns the partition of that number."""

    room: Final = "processes"
    wait_s = WAIT_S
    shares_blobs = True

    def __init__(self, node: Node, seat: Seat, stopping: asyncio.Event) -> None:
        self._node, self._config, self._channel, self._stopping = node, seat.config, seat.channel, stopping
        self._log = get("knhk.processes").bind(process=node.partition)
        self.shared = bool(node.config.persistence.url)
        self.exit_code = 0
        self.router = Router(self)
        self.workers = RoutedWorkers(node.workers, self.router)
        self.guests: dict[int, Guest] = {}
        """The partitions that are here because there are fewer processes than partitions."""
        self._trouble: dict[int, str] = {}
        self.partitions = node.partition + 1  # until the plan says
        self._plan = Plan(self.partitions, {}, {}, {})
        self._report = Report()
        self._moving: dict[int, asyncio.Task[None]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._listers: dict[int, Control] = {}
        self._turn = 0
        self.scaler = LocalScaler(self)

    # -- as the API sees it

    @property
    def reader(self) -> Control:
        return self._node.engine.control

    def homes(self, key: bytes) -> Sequence[int]:
        found = homes(key, self.partitions)
        return found[:1] if self.shared else found

    def local(self, partition: int) -> Control | None:
        engine = self._node.engines.get(partition)
        return engine.control if engine is not None and partition in self._report.owned else None

    def open(self) -> Sequence[int]:
        # Its own before its guests: what is committed together shares a sync.
        own = [self._node.partition, *self.guests]
        found = (one for one in own if self.local(one) is not None and not self._node.engines[one].admission.closed)
        return [*found][:1]

    def remote(self, partition: int) -> str | None:
        number = self._plan.owners.get(partition)
        return None if number in (None, self._node.partition) else self._plan.apis.get(number)

    def somewhere(self) -> str | None:
        others = self.others()
        self._turn += 1
        return others[self._turn % len(others)] if others else None

    def others(self) -> Sequence[str]:
        return [url for number, url in sorted(self._plan.apis.items()) if number != self._node.partition]

    def is_there(self, url: str) -> bool:
        return url in self._plan.apis.values()

    def absent(self, partition: int) -> str:
        """Never: a process that has died is started again."""
        return ""

    def listing(self, partition: int) -> Control | None:
        if not self.shared or partition in self._node.engines:
            return self.local(partition)
        if partition not in self._listers:
            self._listers[partition] = self._node.engine_of(partition).control
        return self._listers[partition]

    async def projected(self) -> None:
        """Wait until the lists show what is committed now, in all partitions. Raises PartitionMoving."""
        for partition in range(self.partitions):
            if not await self.projected_here(partition):
                await self.router.ask(partition, f"/partitions/{partition}/projected")

    async def projected_here(self, partition: int) -> bool:
        """The same for one partition; False if it is not here."""
        engine = self._node.engines.get(partition)
        if engine is None or self.local(partition) is None:
            return False
        head = await self._node.stores[partition].head(partition)
        if head is not None:
            await engine.projector.reached(head.block().height)
        return True

    async def _give_event(self, workflow_id: int, record_id: int) -> bool:
        return await give_event(self.router, workflow_id, record_id)

    # -- as the server sees it

    async def start(self) -> None:
        """Take the process's own partition, and those that have no process of their own."""
        plan = await self._channel.hear()
        if plan is None:
            os._exit(1)  # the supervisor has gone, and nothing is open yet
        self._plan, self.partitions = plan, plan.partitions
        if self.shared:
            await self._node.store.acquire(self._node.partition)
            self._node.engine.signals.elsewhere = self._give_event
        elif self._node.partition == HOME:
            self._node.engine.signals.apart = apart_of(self.router, self._node.clock.now_ns)
        await self._node.start()
        self._owns(self._node.partition, self._node.engine)
        self._follow(plan)
        await asyncio.gather(*self._moving.values())
        self._listening = asyncio.create_task(self._listen(), name="processes")

    def for_scaling(self) -> "tuple[Cluster | None, Processes | None]":
        """The cluster, if this is one, and what changes the number of processes, if something does."""
        return None, self.scaler

    def handlers(self) -> list[Any]:
        """Routes by which processes ask each other."""
        return partition_handlers(self)

    @property
    def recoveries(self) -> dict[int, NodeRecovery]:
        """What takes snapshots of the guests."""
        return {one: guest.recovery for one, guest in self.guests.items() if guest.recovery is not None}

    @property
    def processes(self) -> int:
        """How many processes are wanted."""
        return len(set(self._plan.wanted.values())) or 1

    def want(self, processes: int) -> None:
        """Ask the supervisor for another number of processes."""
        self._tell(asked=processes)

    def ready(self, api: str, operations: str) -> None:
        """The API and the operations answer."""
        self._tell(api=api, operations=operations, ready=True)

    async def leave(self, grace_s: float) -> None:
        """Let what runs come to an end, in all partitions of this process."""
        if self.exit_code:
            return
        self.router.hurry()
        engines = list(self._node.engines.values())
        if not all(await asyncio.gather(*(engine.drain(grace_s) for engine in engines))):
            self._log.warning("work is left; it goes on from its receipts at the next start")

    async def stop(self) -> None:
        """Stop the guests at once."""
        tasks = [*self._moving.values(), *([] if self._listening is None else [self._listening])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for guest in self.guests.values():
            await guest.stop()
        await self.workers.close()
        await self.router.close()

    def health(self) -> str:
        """What keeps a partition of this process from being served."""
        return "; ".join(f"partition {one}: {why}" for one, why in self._trouble.items()) or "ok"

    def can_admit(self) -> tuple[bool, str]:
        """Whether requests should come here."""
        return (True, "") if self._report.ready else (False, "starting")

    # -- as the supervisor sees it

    async def _listen(self) -> None:
        while (plan := await self._channel.hear()) is not None:
            self._plan = plan
            self._follow(plan)
        os._exit(1)  # As if killed, which the kernel does too: nobody may find a partition locked by an orphan.

    def _follow(self, plan: Plan) -> None:
        me = self._node.partition
        for partition, process in plan.wanted.items():
            if partition == me or partition in self._moving:
                continue
            if process == me and partition not in self.guests and plan.owners.get(partition, me) == me:
                self._move(partition, self._take(partition))
            elif process != me and partition in self.guests:
                self._move(partition, self._give_up(partition))

    def _move(self, partition: int, work: Any) -> None:
        def moved(_task: "asyncio.Task[None]") -> None:
            del self._moving[partition]
            self._follow(self._plan)  # what changed meanwhile

        self._moving[partition] = asyncio.create_task(work, name=f"move-{partition}")
        self._moving[partition].add_done_callback(moved)

    async def _take(self, partition: int) -> None:
        while self._plan.wanted.get(partition) == self._node.partition:
            try:
                config = config_of(self._config, partition)
                guest = await Guest.start(self._node, config, partition, self._give_event)
                break
            except KnhkError as error:
                self._trouble[partition] = error.message
                await asyncio.sleep(_RETRY_S if isinstance(error, DataDirectoryInUse) else _LATER_S)
        else:
            self._trouble.pop(partition, None)
            return
        self._trouble.pop(partition, None)
        self.guests[partition] = guest
        self._owns(partition, guest.node.engine)

    async def _give_up(self, partition: int) -> None:
        guest = self.guests.pop(partition)
        await guest.node.engine.drain(self._node.config.cluster.handover_grace_ns / 1e9)
        await guest.stop()
        self._tell(owned=tuple(one for one in self._report.owned if one != partition))

    def _owns(self, partition: int, engine: Engine) -> None:
        self._tell(owned=(*self._report.owned, partition))
        halted = engine.halted
        assert halted is not None
        halted.add_done_callback(lambda halted: self._has_halted(partition, halted.result()))

    def _has_halted(self, partition: int, error: KnhkError) -> None:
        """A process that cannot go on with a partition begins anew: the supervisor starts another one."""
        if partition in self._report.owned and not self._stopping.is_set():
            self._log.error("halted", partition=partition, code=error.code, reason=error.message, hint=error.advice)
            self.exit_code = 1
            self._stopping.set()

    def _tell(self, **changes: Any) -> None:
        self._report = msgspec.structs.replace(self._report, **changes)
        self._channel.say(self._report)


class LocalScaler:
    """Implements ports.scaler.Processes: how many processes this machine has, from 1 to the number of partitions."""

    name = "processes"

    def __init__(self, local: Local) -> None:
        self._local = local

    @property
    def most(self) -> int:
        return self._local.partitions

    async def current(self) -> int:
        return self._local.processes

    async def scale_to(self, count: int) -> None:
        if not 1 <= count <= self.most:
            raise Refused(
                f"{count} processes: there are {self.most} partitions, and each process needs one",
                hint="Start with more in platform.processes, which makes partitions for them.",
            )
        self._local.want(count)

    def others(self) -> Sequence[str]:
        return self._local.others()


def loaded_of(loaded: Loaded, process: int) -> Loaded:
    """The configuration of a process: that of the partition of the same number, and a place for its own diagnostics."""
    config, diagnostics = config_of(loaded.config, process), loaded.config.diagnostics
    if process:
        own = diagnostics.model_copy(update={"path": diagnostics.path / f"process-{process}"})
        config = config.model_copy(update={"diagnostics": own})
    return replace(loaded, config=config)
