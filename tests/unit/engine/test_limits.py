"""Slots, the queue, refusals, shutdown, and runs that only wait."""

import asyncio
import gc
from typing import Any

import pytest

from knhk.domain.errors import DiskFull, Overloaded, ShuttingDown
from knhk.domain.run import RunState
from knhk.engine.live import LiveRun
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

SLOW = workflow(step("a", "effect", params={"takes_s": 10.0}))
PARKS = workflow(step("a", "wait", params={"duration": "1h"}), step("b", "effect", ["a"]), timeout="3h")


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_no_more_runs_are_active_than_there_are_slots(build: Any) -> None:
    house = await build(max_active=2)
    ids = [(await house.submit(SLOW)).workflow_id for _ in range(6)]
    assert len(house.engine.scheduler.active) == 2
    shown = await house.control.status(ids[-1])
    assert (shown["state"], shown["waiting_on"][0]["kind"]) == ("pending", "slot")
    for one in ids:
        assert (await house.ended(one)).state is RunState.COMPLETED
    assert now() == pytest.approx(30, abs=0.5)


async def test_a_full_queue_refuses_and_says_when_to_come_back(build: Any) -> None:
    house = await build(max_active=2, max_queued=3)
    ids = [(await house.submit(SLOW)).workflow_id for _ in range(5)]
    with pytest.raises(Overloaded) as refused:
        await house.submit(SLOW)
    assert refused.value.retry_after_s
    assert len(house.store._state.receipts) == 5
    await house.ended(ids[0])
    assert (await house.submit(SLOW)).state == "pending"
    assert house.engine.admission.rejections["overloaded"] == 1


async def test_a_run_that_only_waits_leaves_memory_and_wakes_in_time(house: House) -> None:
    accepted = await house.submit(PARKS)
    assert not house.engine.scheduler.active
    assert house.store._state.live == set()
    assert len(house.store._state.timers) == 1
    shown = await house.control.status(accepted.workflow_id)
    assert (shown["state"], shown["waiting_on"][0]["kind"]) == ("running", "timer")
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    assert now() == pytest.approx(3600, abs=0.1)
    assert house.leaks() == {}


async def test_parked_runs_wake_after_a_restart(house: House) -> None:
    ids = [(await house.submit(PARKS)).workflow_id for _ in range(3)]
    await asyncio.sleep(1800)
    await house.restart()
    assert not house.engine.scheduler.active
    for one in ids:
        assert (await house.ended(one)).state is RunState.COMPLETED
    assert now() == pytest.approx(3600, abs=0.1)


async def test_a_parked_run_times_out(house: House) -> None:
    accepted = await house.submit(workflow(step("a", "wait", params={"duration": "10h"}), timeout="1h"))
    assert not house.engine.scheduler.active
    assert (await house.ended(accepted.workflow_id)).state is RunState.TIMED_OUT
    assert now() == pytest.approx(3600, abs=0.1)
    assert house.leaks() == {}


async def test_a_parked_run_that_is_cancelled_leaves_no_timer_behind(house: House) -> None:
    accepted = await house.submit(PARKS)
    await house.control.cancel(accepted.workflow_id, actor="test")
    assert house.store._state.timers == set()


async def test_a_parked_run_that_is_paused_and_resumed_still_wakes(house: House) -> None:
    accepted = await house.submit(PARKS)
    await house.control.pause(accepted.workflow_id, actor="test")
    assert not house.engine.scheduler.active
    await asyncio.sleep(7200)
    assert (await house.control.status(accepted.workflow_id))["state"] == "paused"
    assert not house.engine.scheduler.active
    await house.control.resume(accepted.workflow_id, actor="test")
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    assert now() == pytest.approx(7200, abs=0.1)
    assert house.leaks() == {}


async def test_a_pause_before_a_retry_parks_the_run_too(house: House) -> None:
    retry = {"max_attempts": 2, "delay": "10m", "max_delay": "10m", "jitter": False}
    accepted = await house.submit(workflow(step("a", "effect", params={"fails_first": 1}, retry=retry), timeout="1h"))
    await asyncio.sleep(1)
    assert not house.engine.scheduler.active
    assert (await house.control.status(accepted.workflow_id))["waiting_on"][0]["kind"] == "retry"
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    assert len(house.effects.log) == 2


async def test_runs_that_are_due_while_all_slots_are_taken_wait_for_one(build: Any) -> None:
    house = await build(max_active=1)
    parked = [(await house.submit(PARKS)).workflow_id for _ in range(2)]
    await asyncio.sleep(3500)
    long = await house.submit(workflow(step("long", "effect", params={"takes_s": 1000.0}), timeout="1h"))
    await asyncio.sleep(500)
    assert house.engine.sleepers.due == 2
    assert house.effects.order() == ["long"]
    for one in [long.workflow_id, *parked]:
        assert (await house.ended(one)).state is RunState.COMPLETED
    assert now() == pytest.approx(4500, abs=1)


async def test_a_run_that_parks_when_nobody_waits_for_it_any_more_leaves_its_slot_to_one_that_is_due(
    build: Any,
) -> None:
    house = await build(max_active=1)
    soon = workflow(step("a", "wait", params={"duration": "60s"}))
    due = await house.submit(soon)
    request = asyncio.create_task(house.submit(PARKS, wait_s=100))
    await asyncio.sleep(90)
    assert house.engine.sleepers.due == 1
    await request
    assert (await house.ended(due.workflow_id)).state is RunState.COMPLETED
    assert now() == pytest.approx(100, abs=1)


async def test_more_runs_wait_than_one_window_reads(build: Any) -> None:
    house = await build(max_active=100)
    await asyncio.gather(*[house.submit(PARKS) for _ in range(2500)])
    await asyncio.sleep(1)
    assert not house.engine.scheduler.active
    await house.restart()
    await asyncio.sleep(3700)
    assert len(house.effects.of("b")) == 2500
    assert house.leaks() == {}


async def test_parked_runs_leave_nothing_in_memory(build: Any) -> None:
    house = await build()
    gc.collect()
    others = {id(one) for one in gc.get_objects() if isinstance(one, LiveRun)}  # of tests before this one
    for _ in range(10):
        await asyncio.gather(*[house.submit(PARKS) for _ in range(100)])
    held = {place: what for place, what in house.leaks().items() if place != "timer rows"}
    assert held == {}
    assert len(house.store._state.timers) == 1000
    await asyncio.sleep(1)  # The projector has taken them in.
    gc.collect()
    living = [one for one in gc.get_objects() if isinstance(one, LiveRun) and id(one) not in others]
    assert len(living) <= 100, "only those of the newest commit"


async def test_draining_lets_what_is_under_way_end_and_admits_nothing(house: House) -> None:
    accepted = await house.submit(SLOW)
    parked = await house.submit(PARKS)
    draining = asyncio.create_task(house.engine.drain(60.0))
    await asyncio.sleep(1)
    with pytest.raises(ShuttingDown):
        await house.submit(SLOW)
    assert await draining
    assert now() == pytest.approx(10, abs=0.2)
    assert (await house.fold(accepted.workflow_id)).state is RunState.COMPLETED
    assert (await house.fold(parked.workflow_id)).state is RunState.RUNNING


async def test_draining_gives_up_after_its_grace_and_the_rest_goes_on_later(house: House) -> None:
    accepted = await house.submit(workflow(step("a", "effect", params={"takes_s": 100.0})))
    assert not await house.engine.drain(5.0)
    assert now() == pytest.approx(5, abs=0.2)
    await house.engine.stop()
    await asyncio.sleep(0.01)
    await house.start()
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED


async def test_admission_stops_before_the_disk_is_full_and_goes_on_when_there_is_room(house: House) -> None:
    accepted = await house.submit(SLOW)
    house.store.free_bytes = lambda: 10 << 20  # type: ignore[method-assign]
    await asyncio.sleep(2)
    with pytest.raises(DiskFull):
        await house.submit(SLOW)
    assert house.engine.health()["persistence"] != "ok"
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    del house.store.free_bytes  # type: ignore[method-assign]
    await asyncio.sleep(2)
    assert house.engine.health()["persistence"] == "ok"
    await house.submit(SLOW)
