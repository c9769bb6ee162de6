"""The fold measures real runs; what it learned outlives the process."""

import asyncio

import pytest

from knhk.scaling.forecast import Mean, hour_of
from knhk.scaling.history import History
from knhk.scaling.load import Fleet
from knhk.scaling.meter import Cpu, Meter, Places
from tests.simulation.house import House
from tests.unit.scaling.test_load import load

TWO = b"""
apiVersion: knhk/v1
kind: Workflow
metadata: {name: two}
spec:
  steps:
    - {name: a, action: effect, params: {takes_s: 3}}
    - {name: b, action: process, depends_on: [a]}
"""
IDLE = Cpu(0.1, 0.1, 1.0, 1 << 20)


def meter_of(house: House) -> Meter:
    return Meter(house.clock, "knhk-0", lambda: Places(3, 10, 5, 10))


async def test_work_and_waiting_are_measured() -> None:
    house = House()
    meter = meter_of(house)
    house.folds.append(meter)
    await house.start()
    try:
        await house.run(TWO)
        await asyncio.sleep(1)
        found = meter.load(IDLE)
        assert found.work_s == pytest.approx(3, abs=0.5)
        assert (found.runs, found.steps, found.cpu) == (0.3, 0.5, 0.1)
        assert found.wait_s is not None
        assert found.wait_s < 0.01
        assert meter.means[""].runs == 1
        await asyncio.sleep(3_600)
        assert meter.load(IDLE).wait_s == 0.0  # nothing in the last minutes
    finally:
        await house.engine.stop()


async def test_runs_that_wait_for_a_slot_show() -> None:
    from knhk.engine.service import Settings

    house = House(Settings(node_id="knhk-0", threads=1, max_active=1))
    meter = meter_of(house)
    house.folds.append(meter)
    await house.start()
    try:
        accepted = [await house.submit(TWO) for _ in range(4)]
        for one in accepted:
            await house.ended(one.workflow_id)
        await asyncio.sleep(1)
        waited = meter.load(IDLE).wait_s
        assert waited is not None
        assert 5 < waited <= 10  # three of 3 s before the last one
    finally:
        await house.engine.stop()


async def test_hours_and_means_are_kept() -> None:
    house = await House().start()
    try:
        now = house.clock.now_ns()
        history = History(house.store, {"report": Mean(4, 40)})
        history.add(Fleet((load("a", cpu_s=0.0),)), now)
        history.add(Fleet((load("a", cpu_s=30.0, work_s=60.0),)), now + 60 * 10**9)
        history.add(Fleet((load("a", cpu_s=99.0, work_s=99.0),)), now + 9_000 * 10**9)  # a gap is made up by nothing
        await history.store(now + 60 * 10**9)
        means: dict[str, Mean] = {}
        again = History(house.store, means)
        await again.load()
        assert again.hours == {hour_of(now): history.hours[hour_of(now)]}
        hour = again.hours[hour_of(now)]
        assert (hour.cpu_s, hour.work_s, hour.covered_s) == (30.0, 60.0, 60.0)
        assert means["report"].seconds == 10
        await house.store.store("scaling", {b"d" + b"odd": b"\xc1", b"h" + bytes(8): b"\x01"}, 0)
        await again.load()  # what cannot be read is counted anew
        later = now + 9 * 24 * 3_600 * 10**9
        await again.store(later)
        assert hour_of(now) not in again.hours
    finally:
        await house.engine.stop()
