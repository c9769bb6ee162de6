"""The autoscaler on virtual time, with a real engine that keeps its receipts; pods and members are played."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from knhk.domain.errors import KnhkError
from knhk.domain.triggers import Cron
from knhk.engine.service import Settings as EngineSettings
from knhk.scaling.autoscaler import Autoscaler, Settings
from knhk.scaling.decision import Policy
from knhk.scaling.history import History
from knhk.scaling.ledger import ACTOR, Ledger
from knhk.scaling.load import Fleet, Load
from knhk.scaling.meter import Meter, Places
from tests.simulation.clock import VirtualClock, VirtualLoop
from tests.simulation.house import House


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], Any]] | None:
    return {"virtual": VirtualLoop}


class EndOfMonth(VirtualClock):
    """It begins on the last day of January 2026, an hour before its end."""

    def now_ns(self) -> int:
        return super().now_ns() + (31 * 24 - 1) * 3_600 * 1_000_000_000


class Pods:
    """A StatefulSet and its members: implements Scaler and Crew. `errors` are raised by the next changes."""

    name = "kubernetes"

    def __init__(self, count: int) -> None:
        self.count = count
        self.leading = True
        self.cpu: float | None = 0.7
        self.silent: dict[str, str] = {}
        self.marks: dict[str, str] = {}
        self.owned = {f"knhk-{number}": 4 for number in range(count)}
        self.errors: list[KnhkError] = []
        self.changes: list[int] = []

    async def current(self) -> int:
        return self.count

    async def scale_to(self, count: int) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.changes.append(count)
        self.count = count

    def settle(self) -> None:
        """The cluster does what was asked: drained members give their partitions away, pods come and go."""
        self.owned = {f"knhk-{number}": self.owned.get(f"knhk-{number}", 4) for number in range(self.count)}
        for name in self.marks:
            if name in self.owned:
                self.owned[name] = 0

    def leads(self) -> bool:
        return self.leading

    async def loads(self) -> Fleet:
        return Fleet(
            tuple(
                Load(replica=name, cpu=self.cpu, memory=0.1, runs=0.1, steps=0.1, wait_s=0.0, cores=self.cpu)
                for name in self.owned
                if name not in self.silent
            ),
            self.silent,
        )

    def doubts(self) -> Sequence[str]:
        return ()

    def departing(self, before: int, after: int) -> Sequence[str]:
        return [f"knhk-{number}" for number in range(after, before)]

    def members(self) -> frozenset[str]:
        return frozenset(self.owned)

    def drained(self) -> frozenset[str]:
        return frozenset(self.marks)

    def owns(self, name: str) -> int:
        return self.owned.get(name, 0)

    async def drain(self, name: str, *, drained: bool) -> None:
        if drained:
            self.marks[name] = "scaling"
        else:
            del self.marks[name]


class Stage:
    """A house with pods. `autoscaler` can be made anew, as after a restart or on another node."""

    def __init__(self, house: House, pods: Pods) -> None:
        self.house, self.pods = house, pods
        self.policy = Policy(max_replicas=10)
        self.schedules: list[tuple[str, Cron]] = []

    def autoscaler(self) -> Autoscaler:
        clock = self.house.clock
        meter = Meter(clock, "knhk-0", lambda: Places(0, 10, 0, 10))
        return Autoscaler(
            Settings(enabled=True, interval_s=15, limit_s=600),
            lambda: self.policy,
            clock=clock,
            scaler=self.pods,
            crew=self.pods,
            ledger=Ledger(self.house.store, lambda detail: self.house.control.propose(detail, actor=ACTOR)),
            history=History(self.house.store, meter.means),
            meter=meter,
            schedules=lambda: self.schedules,
        )


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    house = await House(EngineSettings(node_id="knhk-0", threads=1), clock=EndOfMonth()).start()
    yield Stage(house, Pods(3))
    await house.engine.stop()
