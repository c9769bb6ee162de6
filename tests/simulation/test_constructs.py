"""Random workflows of all constructs, killed at random moments: they end as if nothing had happened.

A seed that failed is run again with

    .venv/bin/python -m tests.simulation.test_constructs SEED

and many more with

    .venv/bin/pytest -m soak tests/simulation
"""

import asyncio
import random
import sys
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from knhk.actions.registry import Invocation
from knhk.domain import event as ev
from knhk.domain.errors import KnhkError, StorageUnavailable
from knhk.domain.identifier import parse
from knhk.domain.run import RETRYABLE, RunState
from knhk.engine.service import Settings
from tests.simulation.chronicle import Chronicle
from tests.simulation.clock import in_virtual_time
from tests.simulation.constructs import MANY_SLOTS, Generator
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

SEEDS = 30
SOAK_SEEDS = 3_000
RUNS = 2
PART = workflow(step("nap", "wait", params={"duration": "3s"}), step("b", "effect", ["nap"]), name="part")


class Life:
    """One journal, from the first start to the last check; `problems` is what went wrong."""

    def __init__(self, seed: int, *, troubled: bool) -> None:
        self.problems: list[str] = []
        slots = random.Random(f"{seed} slots").choice([1, 2, MANY_SLOTS])
        generators = [Generator(random.Random(f"{seed} {number}"), slots) for number in range(RUNS)]
        self.texts = [one.workflow(f"flow-{number}") for number, one in enumerate(generators)]
        self.rng = rng = random.Random(seed)
        self.troubled = troubled
        settings = Settings(node_id="node-1", threads=1, max_concurrent_steps=slots)
        latency_s = rng.choice([0.0, 0.002, 0.2])
        faults = self._fault if troubled and rng.random() < 0.3 else None
        self.house = House(settings, faults=faults, seed=seed, latency_s=latency_s if troubled else 0.0)
        self.house.effects.on_effect = self._check_effect
        self.ids: list[int] = []
        self.calm = False

    async def live(self) -> list[Any]:
        """How each run ended; nothing but problems count once operators have interfered."""
        house, rng = self.house, self.rng
        await house.start()
        await self._insist(lambda: house.engine.definitions.put(PART, actor="test"))
        for number, text in enumerate(self.texts):
            accepted = await self._insist(lambda text=text, number=number: house.submit(text, key=f"k{number}", n=2))
            self.ids.append(accepted.workflow_id)
        if self.troubled:
            length_s = rng.choice([0.05, 3.0, 100.0])
            for _ in range(rng.randint(1, 5)):
                signals = asyncio.create_task(self._signal())
                await asyncio.sleep(rng.uniform(0, length_s))
                await house.restart()
                assert signals.done()
        self.calm = True
        signals = asyncio.create_task(self._signal())
        for one in self.ids:
            await house.ended(one, within_s=1e7)
        ends = [await self._end(one) for one in self.ids]
        if self.troubled:
            for one in self.ids:
                await self._again(one)
        signals.cancel()
        await asyncio.sleep(60)
        await self._check()
        await house.engine.stop()
        return ends

    async def _insist(self, what: Any) -> Any:
        while True:
            try:
                return await what()
            except KnhkError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(1)

    def _fault(self, stage: str, _commit: Any) -> None:
        if not self.calm and stage != "reopen" and self.rng.random() < 0.05:
            raise StorageUnavailable(f"the store is broken ({stage})")

    async def _signal(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(30)
            for one in self.ids:
                number += 1
                try:
                    await self.house.control.signals.signal(one, "go", 1, signal_id=f"{number}", actor="test")
                except KnhkError:
                    continue  # It has ended, or the store is down.

    async def _end(self, workflow_id: int) -> Any:
        """What must be the same with and without crashes."""
        run = await self.house.fold(workflow_id)
        failure = None if run.failure is None else (run.failure.code, run.failure.step)
        if run.state is not RunState.COMPLETED:
            return {"state": run.state, "failure": failure}
        over = Chronicle(set()).read(self.house.events(workflow_id)).over
        shown = await self.house.control.inspect(workflow_id)
        ends = {path: type(one.detail).__name__ for path, one in over.items()}
        given = {f"output of {one['name']}": _without_times(one.get("output")) for one in shown["steps"]}
        return {"state": run.state, **ends, **given}

    async def _again(self, workflow_id: int) -> None:
        """An operator tries a run that has failed once more, there is a crash, and perhaps it is cancelled."""
        house, rng = self.house, self.rng
        if (await house.fold(workflow_id)).state not in RETRYABLE:
            return
        await house.control.retry(workflow_id, actor="test")
        await asyncio.sleep(rng.choice([0.0, 0.01, 5.0]))
        await house.restart()
        signals = asyncio.create_task(self._signal())
        if rng.random() < 0.5:
            await asyncio.sleep(rng.uniform(0, 30))
            with suppress(KnhkError):  # It has ended already.
                await house.control.cancel(workflow_id, actor="test")
        await house.ended(workflow_id, within_s=1e7)
        signals.cancel()

    # -- What must hold

    def _check_effect(self, invocation: Invocation) -> None:
        workflow_id, path = parse(invocation.workflow_id), invocation.step
        if workflow_id not in self.ids:
            return
        over = Chronicle(set()).read(self.house.events(workflow_id)).over
        around = path.rpartition("/")[0]
        for name in invocation.dependencies:
            before = f"{around}/{name}" if around else name
            if before not in over:
                self.problems.append(f"{path} of wf-{workflow_id}: before {before} had ended")
        if path in over:
            self.problems.append(f"{path} of wf-{workflow_id}: again after it had ended")

    async def _check(self) -> None:
        house = self.house
        for one, text in zip(self.ids, self.texts, strict=True):
            run = await house.fold(one)
            written = msgspec.json.decode(text)
            read = Chronicle(_having("compensate", written), _having("foreach", written)).read(house.events(one))
            self.problems += [f"wf-{one}: {problem}" for problem in read.problems]
            if run.state is not RunState.COMPLETED and read.left and not self._cut_short(one):
                self.problems.append(f"wf-{one} is {run.state}, and was not undone: {read.left}")
            shown = await house.control.inspect(one)
            for each in shown["steps"]:
                given = each.get("output") if each["name"].startswith("each") else None
                if any(index not in (at, None) for at, index in enumerate(given or ())):
                    self.problems.append(f"wf-{one}: {each['name']} gives {given}")
        for workflow_id in house.store._state.receipts:
            events = house.events(workflow_id)
            if isinstance(events[0].detail, ev.Submitted) and not (await house.fold(workflow_id)).ended:
                self.problems.append(f"wf-{workflow_id} never ended")
        report = await house.verify()
        if not report.valid or report.time_reversals:
            self.problems.append(f"the journal does not verify: {report.problems}")
        if leaks := house.leaks():
            self.problems.append(f"left over: {leaks}")

    def _cut_short(self, workflow_id: int) -> bool:
        """Whether an operator has cancelled a run while it put things right."""
        ending = False
        for event in self.house.events(workflow_id):
            if isinstance(event.detail, ev.Ending):
                ending = event.detail.state != RunState.CANCELLED
            elif isinstance(event.detail, ev.Cancelled) and ending:
                return True
        return False


def _without_times(given: Any) -> Any:
    """What a step gave, but for what differs: which signal came, and when."""
    if isinstance(given, dict):
        return "event" if "correlate" in given else {name: _without_times(one) for name, one in given.items()}
    return [_without_times(one) for one in given] if isinstance(given, list) else given


def _having(key: str, given: Any) -> set[str]:
    """The names of the steps that have a key."""
    found: set[str] = set()
    if isinstance(given, dict):
        if key in given:
            found.add(given["name"])
        given = list(given.values())
    if isinstance(given, list):
        for one in given:
            found |= _having(key, one)
    return found


def life_of(seed: int) -> list[str]:
    """What goes wrong with a seed; nothing, if all is well."""
    ends: list[list[Any]] = []
    problems: list[str] = []
    for troubled in (False, True):
        life = Life(seed, troubled=troubled)

        async def live(life: Life = life) -> None:
            ends.append(await life.live())

        in_virtual_time(live)
        problems += [f"{'troubled' if troubled else 'undisturbed'}: {one}" for one in life.problems]
    for calm, troubled_end in zip(*ends, strict=False):
        for key in sorted({*calm, *troubled_end}):
            if calm.get(key) != troubled_end.get(key):
                problems.append(f"{key}: {calm.get(key)} without a crash, {troubled_end.get(key)} with crashes")
    return problems


def _assert_well(seed: int) -> None:
    problems = life_of(seed)
    again = f".venv/bin/python -m tests.simulation.test_constructs {seed}"
    assert not problems, "\n".join([f"seed {seed}; run it again with: {again}", *problems])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_run_ends_as_if_nothing_had_crashed(seed: int) -> None:
    _assert_well(seed)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_more_seeds() -> None:
    for seed in range(SEEDS, SEEDS + SOAK_SEEDS):
        _assert_well(seed)


if __name__ == "__main__":
    for seed in range(int(sys.argv[1]), int(sys.argv[-1]) + 1):
        try:
            found = life_of(seed)
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        for problem in found:
            print(f"seed {seed}: {problem[:1500]}", flush=True)
