"""An engine with everything around it, on virtual time: started, crashed, started again."""

import asyncio
import random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from knhk.actions.registry import Registry
from knhk.domain import event as ev
from knhk.domain.event import Event
from knhk.domain.receipt import Receipt
from knhk.domain.run import Run
from knhk.engine.control import Accepted, Control, Submission
from knhk.engine.service import Engine, Settings
from knhk.persistence.journal_check import verify_all
from knhk.persistence.memory import Faults, MemoryStore
from knhk.persistence.verification import Report, Trust
from knhk.platform.ids import SnowflakeIds
from knhk.ports.append import Commit
from knhk.ports.environment import Clock
from knhk.security.signing import Ed25519Signer, verify
from tests.simulation.clock import EPOCH_NS, VirtualClock
from tests.simulation.effects import Effects

SIGNER = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))), EPOCH_NS)
SETTINGS = Settings(node_id="node-1", threads=2)


class SlowStore(MemoryStore):
    """A memory store that takes its time, so that others run in the middle of every access, as with a real one.

    With a latency of 0 it only lets others run once.
    """

    latency_s = 0.0
    rng = random.Random(0)

    async def _pause(self) -> None:
        await asyncio.sleep(self.rng.random() * self.latency_s)

    async def append(self, commit: Commit) -> None:
        await self._pause()
        await super().append(commit)
        await self._pause()

    async def claim(self, key_digest: bytes) -> Any:
        await self._pause()
        return await super().claim(key_digest)

    async def receipts(self, workflow_id: int, from_seq: int = 0) -> Any:
        await self._pause()
        return await super().receipts(workflow_id, from_seq)

    async def timers(self, partition: int, until_ns: int, limit: int) -> Any:
        rows = await super().timers(partition, until_ns, limit)
        await self._pause()
        return rows

    async def row(self, fold: str, key: bytes) -> bytes | None:
        found = await super().row(fold, key)
        await self._pause()
        return found

    async def store(self, fold: str, rows: dict[bytes, bytes | None], cursor: int) -> None:
        await self._pause()
        await super().store(fold, rows, cursor)


class House:
    """One engine at a time over one journal. What a crash leaves is what the store had."""

    def __init__(
        self,
        settings: Settings = SETTINGS,
        *,
        faults: Faults | None = None,
        seed: int = 0,
        latency_s: float = 0.0,
        clock: Clock | None = None,
        effects: Effects | None = None,
    ) -> None:
        self.settings, self.faults, self.latency_s = settings, faults, latency_s
        self.clock = clock or VirtualClock()
        self.rng = random.Random(seed)
        self.effects = effects or Effects()
        self.store = self._slow(MemoryStore(faults=faults))
        self.folds: list[Any] = []
        self.registry: Registry | None = None
        self.engine: Engine

    def _slow(self, store: MemoryStore) -> SlowStore:
        slow = SlowStore(store._state, self.faults)
        slow.latency_s, slow.rng = self.latency_s, self.rng
        return slow

    @property
    def control(self) -> Control:
        return self.engine.control

    async def start(self) -> "House":
        """Start an engine on what the store holds."""
        self.engine = Engine(
            self.settings,
            self.registry or self.effects.registry(),
            append=self.store,
            journal=self.store,
            projections=self.store,
            storage=self.store,
            signer=SIGNER,
            clock=self.clock,
            ids=SnowflakeIds(self.clock),
            rng=self.rng,
            folds=self.folds,
        )
        await self.engine.start()
        return self

    async def crash(self) -> None:
        """Kill the process: nothing of it runs any more, and only what was in the store is left."""
        engine = self.engine
        self.store = self._slow(self.store.survivor(self.faults))
        engine.scheduler.close()
        engine.executor._slots.clear()
        while doomed := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in doomed:
                task.cancel()
            await asyncio.gather(*doomed, return_exceptions=True)
        engine.executor._threads.shutdown(wait=False, cancel_futures=True)

    async def restart(self) -> None:
        """Crash and start again. A start takes a while, so no id is given out twice."""
        await self.crash()
        await asyncio.sleep(0.01)
        await self.start()

    async def submit(self, descriptor: bytes, *, wait_s: float = 0.0, key: str = "", **inputs: Any) -> Accepted:
        """Submit a workflow."""
        return await self.control.submit(Submission(descriptor, inputs, key), wait_s=wait_s)

    async def run(self, descriptor: bytes, **inputs: Any) -> Run:
        """Submit a workflow and wait for its end."""
        accepted = await self.submit(descriptor, **inputs)
        return await self.ended(accepted.workflow_id)

    async def ended(self, workflow_id: int, within_s: float = 100_000.0) -> Run:
        """The run once it has ended. It is the fold of what is committed."""
        async with asyncio.timeout(within_s):
            async for _ in self.control.follow(workflow_id, 0):
                pass
        return await self.fold(workflow_id)

    async def fold(self, workflow_id: int) -> Run:
        """The run as its committed receipts tell it."""
        run, _ = await self.engine.loader.fold(workflow_id)
        return run

    def receipts(self, workflow_id: int) -> list[Receipt]:
        """The committed receipts of a run."""
        return [sealed.receipt() for sealed in self.store._state.receipts.get(workflow_id, [])]

    def events(self, workflow_id: int) -> list[Event]:
        """What happened to a run, as far as it is committed."""
        return [receipt.event() for receipt in self.receipts(workflow_id)]

    def kinds(self, workflow_id: int, step: str | None = None) -> list[str]:
        """The kinds of a run's committed receipts, of one step or of all."""
        return [receipt.kind for receipt in self.receipts(workflow_id) if step is None or receipt.step == step]

    def completed_steps(self, workflow_id: int) -> set[str]:
        """The steps whose completion is durable."""
        return {event.step for event in self.events(workflow_id) if isinstance(event.detail, ev.StepCompleted)}

    async def verify(self) -> Report:
        """Verify the whole journal as `knhk verify --full` does."""
        trust = Trust.of(await self.store.keys(), verify)
        return await verify_all(self.store, self.store.scanner(), trust, lambda *_: None)

    def leaks(self) -> dict[str, Any]:
        """What the engine still holds of runs, by place; nothing when all have ended."""
        engine, state = self.engine, self.store._state
        held = {
            "active": list(engine.scheduler.active),
            "pending": list(engine.scheduler.pending),
            "deadlines": [key for key in engine.scheduler.deadlines._at if key[0]],
            "watchers": list(engine.watchers._watched),
            "arrivals": list(engine.arrivals._locks),
            "claims": list(engine.control._claims),
            "running": engine.executor.running,
            "waiting": engine.executor.waiting,
            "slots": dict(engine.executor._slots.running),
            "due": engine.sleepers.due,
            "live marks": list(state.live),
            "timer rows": list(state.timers),
        }
        return {name: what for name, what in held.items() if what}
