"""The engine of one partition: built here, started, drained, stopped; and what it can say about its health."""

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from knhk.actions.registry import Registry
from knhk.domain.errors import Corrupt, DiskFull, KnhkError, Unavailable
from knhk.domain.identifier import to_text
from knhk.engine import limit_rows
from knhk.engine.admission import Admission
from knhk.engine.arrivals import Arrivals
from knhk.engine.caching import Caching
from knhk.engine.children import Children
from knhk.engine.committer import Batch, Committer
from knhk.engine.control import Control
from knhk.engine.definitions import Definitions
from knhk.engine.executor import Executor
from knhk.engine.inbound import Inbound
from knhk.engine.leases import Leases, WorkerLimits
from knhk.engine.live import LiveRun
from knhk.engine.loader import Loader
from knhk.engine.plans import Plans
from knhk.engine.projector import FOLD, Projector
from knhk.engine.proposals import Proposals
from knhk.engine.scheduler import Scheduler
from knhk.engine.signals import Signals
from knhk.engine.sleepers import Sleepers
from knhk.engine.time_machine import TimeMachine
from knhk.engine.triggers import Triggers
from knhk.engine.watchers import Watchers
from knhk.engine.workers import Workers
from knhk.ports.blobs import Blobs, NoBlobs
from knhk.ports.environment import Clock, Ids, Signer
from knhk.ports.fold import Fold
from knhk.ports.journal import Journal
from knhk.ports.storage import Projections, Storage

if TYPE_CHECKING:
    from knhk.ports.append import Append  # Only handed on: nothing but the committer may append.

_DISK_CHECK_S: Final = 1.0
_DRAIN_CHECK_S: Final = 0.02
_LOADS_A_TURN: Final = 100
_LIMITS_RETRY_S: Final = 0.25
_NO_BLOBS: Final = NoBlobs("the engine works without a blob area")


class Settings(msgspec.Struct, frozen=True):
    """The limits of the engine; times in nanoseconds, sizes in bytes.

    `sampling_rate` is the share of runs that are traced, None if traces are sent nowhere. `idle_ns` is how long
    sleepers, triggers and followers that have nothing to do wait before they look again.
    """

    node_id: str
    max_active: int = 10_000
    max_queued: int = 10_000
    max_concurrent_steps: int = 1_000
    threads: int = 32
    default_timeout_ns: int = 300_000_000_000
    tick_ns: int = 12_500_000
    idle_ns: int = 15_000_000_000
    max_descriptor_bytes: int = 4 << 20
    max_steps: int = 100_000
    max_payload_bytes: int = 4 << 20
    min_free_bytes: int = 64 << 20
    workers: WorkerLimits = WorkerLimits()
    partition: int = 0
    sampling_rate: float | None = None
    leading: bool = True
    """Whether this engine starts what triggers start and hands events out: one of several does."""
    webhook_secrets: Mapping[str, str] = {}


class Engine:
    """Everything between a submission and its receipts, for one partition."""

    started = False
    """Whether all that was under way is in memory, and goes on."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        append: "Append",
        journal: Journal,
        projections: Projections,
        storage: Storage,
        signer: Signer,
        clock: Clock,
        ids: Ids,
        rng: random.Random,
        folds: Sequence[Fold] = (),
        workers: Workers | None = None,
        blobs: Blobs = _NO_BLOBS,
    ) -> None:
        self.blobs = blobs
        self.settings, self._clock, self._journal, self._storage = settings, clock, journal, storage
        self._projections = projections
        partition = settings.partition
        self.plans = Plans(
            registry.traits(),
            max_bytes=settings.max_descriptor_bytes,
            max_steps=settings.max_steps,
            default_timeout_ns=settings.default_timeout_ns,
            tick_ns=settings.tick_ns,
        )
        self.watchers = Watchers(settings.idle_ns / 1e9)
        self.scheduler = Scheduler(
            clock,
            rng,
            max_active=settings.max_active,
            tick_ns=settings.tick_ns,
            ended=self._ended,
            parked=self._parked,
        )
        self.committer = Committer(
            partition,
            append,
            journal,
            signer,
            clock,
            settings.node_id,
            placement=self.scheduler.placement,
            committed=self._committed,
            halted=self._halted,
        )
        self.workers = workers or Workers(clock, settings.workers)
        """Those of all partitions of this process, if it has several."""
        self.leases = self._leases()
        self.executor = self._hands(registry)
        self.scheduler.connect(self.committer, self.executor, settings.max_payload_bytes, blobs.require)
        self.loader = Loader(journal, self.plans)
        self.arrivals = Arrivals(self.loader, self.scheduler)
        self.sleepers = self._alarms()
        self.projector = Projector(partition, journal, projections, clock, folds)
        self.admission = self._gate()
        self.definitions = self._registered(ids)
        self.inbound = Inbound(self.committer, self.scheduler, clock)
        self.signals = self._messages(ids)
        self.proposals = self._feedback(ids)
        self.control = self._facade(ids)
        self.children = self._family()
        self.caching = self._memory()
        self.triggers = self._starters()
        self._back_in_time()
        self.corrupt: dict[int, str] = {}
        self.halted: asyncio.Future[KnhkError] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def _alarms(self) -> Sleepers:
        sleepers = Sleepers(
            self.settings.partition,
            self._journal,
            self._clock,
            self.scheduler.deadlines,
            self.settings.idle_ns,
            wake=self._wake,
            has_room=lambda: self.scheduler.has_slot,
        )
        self.scheduler.woken = sleepers.woken
        return sleepers

    def _leases(self) -> Leases:
        return Leases(
            self.settings.partition,
            self.workers.queues,
            self._clock,
            self.settings.workers,
            leased=self.scheduler.leased,
            ended=self.scheduler.attempt_ended,
            fold=lambda workflow_id: self.control.run_of(workflow_id),
        )

    def _hands(self, registry: Registry) -> Executor:
        return Executor(
            registry,
            self._clock,
            max_concurrent=self.settings.max_concurrent_steps,
            threads=self.settings.threads,
            sampling_rate=self.settings.sampling_rate,
            remote=self.leases,
            ended=self.scheduler.attempt_ended,
        )

    def _gate(self) -> Admission:
        return Admission(
            max_queued=self.settings.max_queued,
            has_slot=lambda: self.scheduler.has_slot,
            queue=self.scheduler.pending,
            uncommitted=lambda: self.committer.uncommitted_receipts,
            fault=lambda: self.committer.fault,
            require_blobs=self.blobs.require,
        )

    def _registered(self, ids: Ids) -> Definitions:
        return Definitions(
            self.settings.partition,
            admission=self.admission,
            committer=self.committer,
            plans=self.plans,
            journal=self._journal,
            projections=self._projections,
            projector=self.projector,
            clock=self._clock,
            ids=ids,
        )

    def _messages(self, ids: Ids) -> Signals:
        signals = Signals(
            self.settings.partition,
            admission=self.admission,
            arrivals=self.arrivals,
            inbound=self.inbound,
            committer=self.committer,
            journal=self._journal,
            projections=self._projections,
            projector=self.projector,
            clock=self._clock,
            ids=ids,
            max_payload_bytes=self.settings.max_payload_bytes,
        )
        self.scheduler.began_to_wait = signals.began_to_wait
        return signals

    def _feedback(self, ids: Ids) -> Proposals:
        return Proposals(
            self.settings.partition,
            admission=self.admission,
            committer=self.committer,
            plans=self.plans,
            journal=self._journal,
            clock=self._clock,
            ids=ids,
        )

    def _family(self) -> Children:
        children = Children(
            definitions=self.definitions,
            scheduler=self.scheduler,
            arrivals=self.arrivals,
            inbound=self.inbound,
            clock=self._clock,
            create=self.control.create_child,
            results=self.control.results,
            cancel=self.control.cancel,
        )
        self.scheduler.start_child, self.scheduler.left_children = children.start, children.left
        return children

    def _memory(self) -> Caching:
        caching = Caching(
            committer=self.committer,
            journal=self._journal,
            projections=self._projections,
            projector=self.projector,
            clock=self._clock,
            found=self.scheduler.looked_up,
        )
        self.scheduler.look_up = caching.look_up
        return caching

    def _starters(self) -> Triggers:
        triggers = Triggers(
            definitions=self.definitions,
            journal=self._journal,
            clock=self._clock,
            submit=self.control.submit,
            secrets=self.settings.webhook_secrets,
            idle_ns=self.settings.idle_ns,
        )
        self.definitions.changed = triggers.changed
        self.control.triggers = self.signals.triggers = triggers
        return triggers

    def _back_in_time(self) -> None:
        self.control.time_machine = TimeMachine(
            admission=self.admission,
            arrivals=self.arrivals,
            inbound=self.inbound,
            loader=self.loader,
            scheduler=self.scheduler,
            clock=self._clock,
            accept=self.control.accept_fork,
            require_key=self.control.require_key,
        )

    def _facade(self, ids: Ids) -> Control:
        return Control(
            self.settings.partition,
            admission=self.admission,
            committer=self.committer,
            scheduler=self.scheduler,
            loader=self.loader,
            arrivals=self.arrivals,
            plans=self.plans,
            definitions=self.definitions,
            signals=self.signals,
            inbound=self.inbound,
            proposals=self.proposals,
            journal=self._journal,
            projections=self._projections,
            watchers=self.watchers,
            clock=self._clock,
            ids=ids,
        )

    async def start(self) -> None:
        """Take over the partition, load the runs that were under way, and go on with them."""
        self.halted = asyncio.get_running_loop().create_future()
        await self.committer.start()
        await self.projector.start()
        self.workers.join(self.leases)
        for number, workflow_id in enumerate(await self._journal.live(self.settings.partition)):
            await self._load(workflow_id)
            if number % _LOADS_A_TURN == _LOADS_A_TURN - 1:
                await self._clock.sleep(0)
        self.arrivals.open()
        self.scheduler.fill_slots()
        self.sleepers.start()
        if self.settings.leading:
            self.triggers.start()
        self.signals.start(leading=self.settings.leading)
        self._tasks = [
            asyncio.create_task(self._load_limits(), name="limits"),
            asyncio.create_task(self._watch_disk(), name="disk-watch"),
        ]
        self.started = True

    def is_at_rest(self, workflow_id: int) -> bool:
        """Whether nothing is done with a run, and nothing is about to be."""
        return self.scheduler.find(workflow_id) is None and not self.arrivals.is_held(workflow_id)

    async def drain(self, grace_s: float) -> bool:
        """Admit nothing more and wait for the runs in memory; whether all of them came to an end or to rest."""
        self.admission.closed = True
        left = grace_s
        while self.scheduler.active or self.scheduler.pending:
            if left <= 0 or self.committer.fault is not None:
                return False
            await self._clock.sleep(_DRAIN_CHECK_S)
            left -= _DRAIN_CHECK_S
        return True

    def let_go(self) -> None:
        """Let nobody wait for the end of a run any more: they are answered with its present state."""
        self.watchers.close()
        for workflow_id in (*self.scheduler.active, *self.scheduler.pending):
            live = self.scheduler.find(workflow_id)
            if live is not None:
                _settle(live.waiters)

    async def stop(self) -> None:
        """Stop at once. What is under way goes on from its receipts at the next start."""
        self.admission.closed = True
        self.let_go()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.triggers.stop()
        await self.children.stop()
        await self.caching.stop()
        await self.signals.stop()
        await self.sleepers.stop()
        self.scheduler.close()
        self.workers.leave(self.leases)
        await self.executor.close()
        await self.committer.stop()
        await self.projector.stop()

    @property
    def trouble(self) -> Unavailable | None:
        """Why nothing can be admitted because of the store, None if it can."""
        return self.committer.fault or self.admission.low_disk

    def health(self) -> dict[str, str]:
        """What is wrong, by room; `ok` where nothing is."""
        fault = self.trouble
        if self.corrupt:
            named = ", ".join(to_text(one) for one in list(self.corrupt)[:5])
            persistence = f"corrupt: {len(self.corrupt)} workflow(s) do not verify and are halted: {named}"
        elif fault is not None:
            persistence = f"{fault.title}: {fault.message}"
        elif self.sleepers.trouble is not None:
            persistence = f"timers cannot be read: {self.sleepers.trouble.message}"
        elif self.projector.failed is not None:
            persistence = f"projections stopped: {self.projector.failed}"
        else:
            persistence = "ok"
        return {"persistence": persistence}

    async def _load(self, workflow_id: int) -> None:
        try:
            live = await self.loader.load(workflow_id)
        except Corrupt as error:
            self.corrupt[workflow_id] = error.message
            return
        live.marked_live = True
        live.timer_row_ns = 0  # It was not parked.
        if live.run.ended:
            self.children.ended(live)
        else:
            self.scheduler.take_in(live)

    async def _load_limits(self) -> None:
        """Learn from the rows which parked runs hold a concurrency key; then runs with limits may start."""
        head = await self._journal.head(self.settings.partition)
        if head is not None:
            await self.projector.reached(head.block().height)
        while True:
            try:
                await limit_rows.load(self._projections, FOLD, self.scheduler.holders, self._clock.now_ns())
            except KnhkError:
                await self._clock.sleep(_LIMITS_RETRY_S)
                continue
            break
        self.scheduler.pending.loaded()
        self.scheduler.fill_slots()

    async def _wake(self, workflow_id: int) -> None:
        try:
            await self.arrivals.wake(workflow_id)
        except Corrupt as error:
            self.corrupt[workflow_id] = error.message
        except KnhkError:
            # The store cannot be read just now: the timer row is still there, and the next window finds it.
            return

    def _committed(self, batch: Batch) -> None:
        self.projector.feed(batch)
        self.scheduler.committed(batch)
        self.watchers.notify(batch)
        self.sleepers.room()

    def _ended(self, live: LiveRun) -> None:
        _settle(live.waiters)
        self.children.ended(live)

    def _parked(self, live: LiveRun) -> None:
        self.arrivals.keep(live)
        self.sleepers.parked(live.run.workflow_id, live.timer_row_ns)

    def _halted(self, error: KnhkError) -> None:
        self.admission.closed = True
        if self.halted is not None and not self.halted.done():
            self.halted.set_result(error)

    async def _watch_disk(self) -> None:
        """Stop admission before the disk is full, so that what is under way can still be committed."""
        while self.settings.min_free_bytes:  # without a limit there is nothing to watch for
            free = self._storage.free_bytes()
            least = self.settings.min_free_bytes
            if free < least:
                message = f"{free >> 20} MiB are free where the store is; admission stops below {least >> 20} MiB"
                self.admission.low_disk = DiskFull(message)
            else:
                self.admission.low_disk = None
            await self._clock.sleep(_DISK_CHECK_S)


def _settle(waiters: Iterable["asyncio.Future[None]"]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
