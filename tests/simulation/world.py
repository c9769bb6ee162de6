"""A seeded world: clients, operators, a store that fails and an engine that is killed, all on virtual time.

A seed decides everything. Whoever looks for the cause of a failure runs that seed alone, as often as needed.
"""

import asyncio
import random
import sys
from typing import Any

import msgspec

from knhk.actions.registry import Invocation
from knhk.domain import event as ev
from knhk.domain import summary as rows
from knhk.domain.errors import DiskFull, KnhkError, StorageUnavailable
from knhk.domain.identifier import parse
from knhk.domain.run import RunState
from knhk.engine.projector import FOLD, row_key
from knhk.engine.service import Settings
from knhk.ports.append import Commit
from tests.simulation.clock import in_virtual_time
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

RUN_TIMEOUT_S = 1200
MOST_SHARED = 2


class Intent(msgspec.Struct):
    """What a client wants to run. With a key it is repeated until it is known to be in; without, it is sent once."""

    descriptor: bytes
    at_s: float
    key: str = ""
    workflow_id: int = 0
    sent: bool = False


class World:
    """One seed. `problems` are the invariants that did not hold."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.problems: list[str] = []
        self.broken_until_s = 0.0
        self.fault_rate = rng.choice([0.0, 0.0, 0.05, 0.3])
        settings = Settings(
            node_id="node-1",
            threads=1,
            max_active=rng.choice([1, 3, 100]),
            max_queued=rng.choice([2, 100]),
            max_concurrent_steps=rng.choice([1, 4, 100]),
        )
        latency_s = rng.choice([0.0, 0.002, 0.2])
        self.house = House(settings, faults=self._fault, seed=seed, latency_s=latency_s)
        self.house.effects.on_effect = self._check_effect
        self.length_s = rng.choice([1.0, 30.0, 300.0])
        self.crashes = rng.choice([0, 1, 2, 6])
        self.intents = [self._intent(number) for number in range(rng.randint(3, 14))]
        self._tasks: set[asyncio.Task[None]] = set()

    async def live(self) -> None:
        """From the first start to the last check."""
        await self.house.start()
        await self._define()
        self._populate()
        for at_s in sorted(self.rng.uniform(0, self.length_s) for _ in range(self.crashes)):
            await self._until(at_s)
            await self.house.restart()
            self._populate()
        await self._until(self.length_s)
        await self._calm_down()
        await self._check_end()
        await self.house.engine.stop()

    async def _define(self) -> None:
        """The definition of which children are."""
        text = workflow(step("nap", "wait", params={"duration": "3s"}), step("b", "effect", ["nap"]), name="part")
        while True:
            try:
                await self.house.engine.definitions.put(text, actor="test")
                return
            except KnhkError:
                await asyncio.sleep(1)

    # -- What happens

    def _fault(self, stage: str, _commit: Commit | None) -> None:
        now = asyncio.get_running_loop().time()
        if now < self.broken_until_s:
            raise (DiskFull if self.rng.random() < 0.5 else StorageUnavailable)(f"the store is broken ({stage})")
        if stage != "reopen" and self.rng.random() < self.fault_rate:
            self.broken_until_s = now + self.rng.choice([0.0, 0.01, 1.0, 20.0])
            raise StorageUnavailable(f"the store has just broken ({stage})")

    def _populate(self) -> None:
        for intent in self.intents:
            if not intent.workflow_id and (intent.key or not intent.sent):
                for _ in range(self.rng.choice([1, 1, 2]) if intent.key else 1):
                    self._spawn(self._client(intent))
        for _ in range(self.rng.randint(0, 6)):
            self._spawn(self._operator())

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - asyncio.get_running_loop().time()))

    async def _client(self, intent: Intent) -> None:
        await self._until(intent.at_s)
        wait_s = self.rng.choice([0.0, 0.0, 5.0])
        while True:
            intent.sent = True
            try:
                accepted = await self.house.submit(intent.descriptor, key=intent.key, wait_s=wait_s)
            except KnhkError as error:
                if not error.retryable:
                    self.problems.append(f"a good submission was refused: {error}")
                    return
                if isinstance(error, StorageUnavailable | DiskFull) and not intent.key:
                    return  # It may be in or not; without a key nobody may send it again.
                await asyncio.sleep(self.rng.uniform(0.01, 2))
                continue
            if intent.workflow_id not in (0, accepted.workflow_id):
                self.problems.append(f"{intent.key} stands for {intent.workflow_id} and {accepted.workflow_id}")
            intent.workflow_id = accepted.workflow_id
            return

    async def _operator(self) -> None:
        control = self.house.control
        while True:
            await asyncio.sleep(self.rng.expovariate(10 / self.length_s))
            known = [intent.workflow_id for intent in self.intents if intent.workflow_id]
            if not known:
                continue
            workflow_id = self.rng.choice(known)
            try:
                match self.rng.randrange(12):
                    case 0:
                        await control.cancel(workflow_id, actor="test")
                    case 1 | 2:
                        await control.pause(workflow_id, actor="test")
                    case 3 | 4:
                        await control.resume(workflow_id, actor="test")
                    case 5 | 6:
                        await control.retry(workflow_id, actor="test")
                    case 7:
                        await control.inspect(workflow_id)
                    case 8:
                        await control.erase(workflow_id, actor="test")
                    case 9:
                        await control.signals.signal(workflow_id, "go", 1, signal_id="s", actor="test")
                    case 10 | 11:
                        correlate = f"k{self.rng.randrange(3)}"
                        await control.signals.publish("go", correlate, 1, keep_ns=60_000_000_000, actor="test")
            except KnhkError:
                continue  # Not possible in this state, or the store is down: both are answers.

    async def _calm_down(self) -> None:
        """The store works, nobody crashes, operators go home and resume what they paused; all clients are served."""
        self.fault_rate = self.broken_until_s = 0.0
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(5)
        clients = [asyncio.create_task(self._client(one)) for one in self.intents if one.key and not one.workflow_id]
        for workflow_id in self._known():
            run = await self.house.fold(workflow_id)
            if run.state is RunState.PAUSED:
                await self.house.control.resume(workflow_id, actor="test")
        async with asyncio.timeout(50 * RUN_TIMEOUT_S):
            await asyncio.gather(*clients)
            while not all([(await self.house.fold(one)).ended for one in self._known()]):
                await asyncio.sleep(10)
        await asyncio.sleep(40)  # Longer than the window in which wake times are kept in memory.

    # -- What must hold

    def _check_effect(self, invocation: Invocation) -> None:
        workflow_id = parse(invocation.workflow_id)
        durable = self.house.completed_steps(workflow_id)
        for dependency in invocation.dependencies:
            if dependency not in durable:
                self.problems.append(f"{invocation.idempotency_key}: before {dependency} was durable")
        if invocation.step in durable:
            self.problems.append(f"{invocation.idempotency_key}: again after it had completed")
        if invocation.step.startswith("once"):
            if "step.started" not in self.house.kinds(workflow_id, invocation.step):
                self.problems.append(f"{invocation.idempotency_key}: before its start was durable")
            if any(effect.key == invocation.idempotency_key for effect in self.house.effects.log):
                self.problems.append(f"{invocation.idempotency_key}: a second time")

    def _known(self) -> list[int]:
        receipts = self.house.store._state.receipts
        return [one for one, sealed in receipts.items() if sealed[0].receipt().kind == "workflow.submitted"]

    async def _check_end(self) -> None:
        house, problems = self.house, self.problems
        for intent in self.intents:
            if intent.workflow_id and intent.workflow_id not in house.store._state.receipts:
                problems.append(f"wf-{intent.workflow_id} was acknowledged and is lost")
        keys: dict[str, int] = {}
        for workflow_id in self._known():
            await self._check_run(workflow_id, keys)
        self._check_limit()
        report = await house.verify()
        if not report.valid or report.time_reversals:
            problems.append(f"the journal does not verify: {report.problems}")
        if report.verified_count != sum(len(one) for one in house.store._state.receipts.values()):
            problems.append("not every receipt is verified")
        if leaks := house.leaks():
            problems.append(f"left over: {leaks}")
        if set(house.engine.health().values()) != {"ok"}:
            problems.append(f"not healthy: {house.engine.health()}")

    def _check_limit(self) -> None:
        """Never were more runs under way with the shared key than may be."""
        changes: list[tuple[int, int]] = []
        for workflow_id in self._known():
            events = self.house.events(workflow_id)
            if getattr(events[0].detail, "concurrency_key", ""):
                under_way = False
                for event in events:
                    if isinstance(event.detail, ev.Started | ev.Retried):
                        changes.append((event.at_ns, 1))
                        under_way = True
                    elif isinstance(event.detail, ev.Completed | ev.Failed | ev.Cancelled | ev.TimedOut) and under_way:
                        changes.append((event.at_ns, -1))
                        under_way = False
        now = 0
        for _, change in sorted(changes):
            now += change
            if now > MOST_SHARED:
                self.problems.append(f"{now} runs with the shared key were under way at the same time")

    async def _check_run(self, workflow_id: int, keys: dict[str, int]) -> None:
        house, problems = self.house, self.problems
        run, name = await house.fold(workflow_id), f"wf-{workflow_id}"
        events = house.events(workflow_id)
        if not run.ended:
            problems.append(f"{name} never ended: {run.state}, {house.kinds(workflow_id)}")
        completed = [event.step for event in events if isinstance(event.detail, ev.StepCompleted)]
        if len(completed) != len(set(completed)):
            problems.append(f"{name}: a step completed twice: {completed}")
        if run.state is RunState.COMPLETED and len(completed) != len(run.steps):
            problems.append(f"{name}: completed with {len(completed)} of {len(run.steps)} steps")
        self._check_attempts(name, events)
        assert run.submitted is not None
        if run.submitted.child_of.workflow_id and not run.settled:
            problems.append(f"{name}: its parent was never told")
        key = run.submitted.idempotency_key
        if key and keys.setdefault(key, workflow_id) != workflow_id:
            problems.append(f"{name}: key {key} has two runs")
        row = await house.store.row(FOLD, row_key(workflow_id))
        if row is None:
            problems.append(f"{name}: no row")
            return
        summary = rows.decode(row)
        of_run = (run.state, run.completed, run.submitted_at_ns, run.started_at_ns, run.ended_at_ns, run.failure)
        of_row = (
            summary.state,
            summary.completed,
            summary.submitted_at_ns,
            summary.started_at_ns,
            summary.ended_at_ns,
            summary.failure,
        )
        if of_run != of_row:
            problems.append(f"{name}: its row says {of_row}, its receipts {of_run}")

    def _check_attempts(self, name: str, events: list[ev.Event]) -> None:
        """Attempts count up by one, and none begins before the time that the retry before it named."""
        last: dict[str, int] = {}
        not_before: dict[str, int] = {}
        for event in events:
            match event.detail:
                case ev.StepCompleted() | ev.StepFailed() | ev.StepRetrying():
                    if event.attempt not in (last.get(event.step, 0), last.get(event.step, 0) + 1):
                        before = last.get(event.step, 0)
                        self.problems.append(f"{name}/{event.step}: attempt {event.attempt} after {before}")
                    if 0 < event.detail.started_at_ns < not_before.get(event.step, 0):
                        self.problems.append(f"{name}/{event.step}: attempt {event.attempt} began too early")
                    last[event.step] = event.attempt
                    not_before.pop(event.step, None)
                    if isinstance(event.detail, ev.StepRetrying):
                        not_before[event.step] = event.detail.next_at_ns
                case ev.TimerSet() | ev.StepWaiting():
                    last[event.step] = event.attempt
                case ev.Retried():
                    not_before.clear()

    # -- What is run

    def _intent(self, number: int) -> Intent:
        key = f"key-{self.rng.randrange(1000)}" if self.rng.random() < 0.5 else ""
        return Intent(self._workflow(number), self.rng.uniform(0, self.length_s), f"{key}-{number}" if key else "")

    def _workflow(self, number: int) -> bytes:
        names: list[str] = []
        steps = []
        for index in range(self.rng.randint(1, 7)):
            after = self.rng.sample(names, self.rng.randint(0, min(2, len(names))))
            steps.append(self._step(index, after))
            names.append(steps[-1]["name"])
        covenant = self.rng.choice(["Sigma", "Sigma", "O"])
        limits = {"concurrency": {"limit": MOST_SHARED, "key": "shared"}} if self.rng.random() < 0.3 else {}
        return workflow(*steps, name=f"flow-{number}", timeout=f"{RUN_TIMEOUT_S}s", covenant=covenant, **limits)

    def _step(self, index: int, after: list[str]) -> dict[str, Any]:
        rng = self.rng
        takes_s = rng.choice([0.0, 0.0, 0.01, 0.5, 20.0])
        retry = {
            "max_attempts": rng.randint(1, 4),
            "delay": rng.choice(["1ms", "1s", "20s"]),
            "jitter": rng.random() < 0.5,
        }
        timeout = {"timeout": rng.choice(["100ms", "10s", "60s"])} if rng.random() < 0.4 else {}
        does = {"takes_s": takes_s, "fails_first": rng.choice([0, 0, 0, 1, 2]), "fails": rng.random() < 0.03}
        does["hangs"] = rng.random() < 0.03
        match rng.choice(["effect", "effect", "once", "think", "process", "wait", "fail", "event", "child"]):
            case "effect":
                return step(f"effect{index}", "effect", after, params=does, retry=retry, **timeout)
            case "once":
                return step(f"once{index}", "effect", after, params=does, semantics="at_most_once", **timeout)
            case "think":
                return step(f"think{index}", "think", after, params=does, retry=retry, **timeout)
            case "wait":
                duration = rng.choice(["1ms", "2s", "40s", "5m"])
                return step(f"wait{index}", "wait", after, params={"duration": duration, "output": index})
            case "event":
                params = {"event": "go", "correlate": f"k{rng.randrange(3)}", "timeout": rng.choice(["2s", "5m"])}
                return step(f"event{index}", "wait_for", after, params=params)
            case "child":
                return step(f"child{index}", "workflow", after, params={"name": "part"}, retry=retry, **timeout)
            case "fail":
                return step(f"fail{index}", "fail", after, params={"until_attempt": rng.randint(1, 3)}, retry=retry)
            case _:
                shown = {name: f"${{{{ steps.{name}.output }}}}" for name in after}
                return step(f"shape{index}", "process", after, params=shown or {"x": index})


def life_of(seed: int) -> list[str]:
    """What goes wrong in the world of a seed; nothing, if all is well."""
    world = World(seed)
    in_virtual_time(world.live)
    return world.problems


def main(first: int, last: int) -> int:
    """Go through seeds and print what is wrong; how many of them went wrong."""
    wrong = 0
    for seed in range(first, last + 1):
        try:
            problems = life_of(seed)
        except Exception as error:
            problems = [f"{type(error).__name__}: {error}"]
        for problem in problems:
            print(f"seed {seed}: {problem}")
        wrong += bool(problems)
    print(f"{last - first + 1} seeds, {wrong} went wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(min(1, main(int(sys.argv[1]), int(sys.argv[-1]))))
