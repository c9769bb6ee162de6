"""Engines on virtual time: a test that waits for hours takes milliseconds."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from knhk.domain.errors import StorageUnavailable
from knhk.engine.service import Settings
from knhk.ports.append import Commit
from tests.simulation.clock import VirtualLoop
from tests.simulation.house import House

REAL_TIME = {"test_threads.py"}


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], Any]] | None:
    if item.path.name in REAL_TIME:
        import asyncio

        return {"real": asyncio.SelectorEventLoop}
    return {"virtual": VirtualLoop}


class Faults:
    """Breaks the store when a test says so. `when` is the stage at which it fails, none for a store that works."""

    def __init__(self) -> None:
        self.when: set[str] = set()
        self.error: type[StorageUnavailable] = StorageUnavailable
        self.met = 0

    def __call__(self, stage: str, _commit: Commit | None) -> None:
        if stage in self.when:
            self.met += 1
            raise self.error(f"broken {stage}")


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def house(faults: Faults) -> AsyncIterator[House]:
    """A started engine over a store that works until the test breaks it; stopped afterwards."""
    started = await House(faults=faults).start()
    yield started
    faults.when.clear()
    await started.engine.stop()


@pytest.fixture
async def build() -> AsyncIterator[Callable[..., Any]]:
    """Makes started houses with other limits: `await build(max_active=1)`."""
    houses: list[House] = []

    async def make(**limits: Any) -> House:
        surroundings = {name: limits.pop(name) for name in ("faults", "latency_s", "clock") if name in limits}
        houses.append(await House(Settings(**{"node_id": "node-1", "threads": 2, **limits}), **surroundings).start())
        return houses[-1]

    yield make
    for one in houses:
        await one.engine.stop()
