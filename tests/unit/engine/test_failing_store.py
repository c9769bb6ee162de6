"""A store that fails: who is told what, that nothing is lost, and who must stop writing."""

import asyncio
from typing import Any

import pytest

from knhk.domain.errors import DiskFull, Fenced, KnhkError, StorageUnavailable
from knhk.domain.run import RunState
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House
from tests.unit.engine.conftest import Faults

QUICK = workflow(step("a", "effect"))


@pytest.mark.parametrize("stage", ["before", "after"])
async def test_who_waits_is_told_and_the_commit_is_made_when_the_store_is_back(
    house: House, faults: Faults, stage: str
) -> None:
    faults.when = {stage, "reopen"}
    with pytest.raises(StorageUnavailable):
        await house.submit(QUICK)
    with pytest.raises(StorageUnavailable):
        await house.submit(QUICK)
    assert "broken" in house.engine.health()["persistence"]
    faults.when.clear()
    await asyncio.sleep(5)
    assert house.engine.health()["persistence"] == "ok"
    (run_id,) = house.store._state.receipts
    assert (await house.ended(run_id)).state is RunState.COMPLETED
    assert len(house.effects.log) == 1
    assert (await house.verify()).valid


async def test_no_effect_happens_before_what_it_depends_on_is_durable(house: House, faults: Faults) -> None:
    accepted = await house.submit(
        workflow(step("a", "effect", params={"takes_s": 1.0}), step("b", "effect", ["a"]), step("c", after=["a"]))
    )
    faults.when = {"before", "reopen"}
    await asyncio.sleep(60)
    assert house.effects.order() == ["a"]
    assert (await house.fold(accepted.workflow_id)).completed == 0
    faults.when.clear()
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    assert house.effects.order() == ["a", "b"]


async def test_a_crash_while_the_store_is_down_loses_nothing_that_was_acknowledged(
    house: House, faults: Faults
) -> None:
    accepted = await house.submit(workflow(step("a", "effect", params={"takes_s": 1.0})))
    faults.when = {"before", "reopen"}
    await asyncio.sleep(60)
    faults.when.clear()
    await house.restart()
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    assert len(house.effects.log) == 2, "its completion was never durable, so at least once means once more"


async def test_a_full_disk_is_told_as_such_and_recovers(house: House, faults: Faults) -> None:
    faults.error = DiskFull  # type: ignore[assignment]
    faults.when = {"before", "reopen"}
    with pytest.raises(DiskFull):
        await house.submit(QUICK)
    with pytest.raises(DiskFull):
        await house.submit(QUICK)
    faults.when.clear()
    await asyncio.sleep(5)
    assert (await house.run(QUICK)).state is RunState.COMPLETED


async def test_an_operator_whose_commit_is_open_does_not_fork_the_chain(house: House, faults: Faults) -> None:
    """A parked run is in no slot; until the cancel is durable nobody may go on from the receipts before it."""
    accepted = await house.submit(workflow(step("a", "wait", params={"duration": "1h"}), timeout="2h"))
    faults.when = {"before", "reopen"}
    with pytest.raises(StorageUnavailable):
        await house.control.cancel(accepted.workflow_id, actor="test")
    with pytest.raises(KnhkError):
        await house.control.pause(accepted.workflow_id, actor="test")
    faults.when.clear()
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.CANCELLED
    assert (await house.verify()).valid
    assert house.leaks() == {}


async def test_another_owner_fences_this_one_which_halts(house: House) -> None:
    accepted = await house.submit(workflow(step("a", "effect", params={"takes_s": 5.0})))
    await house.store.acquire(0)
    assert house.engine.halted is not None
    error = await house.engine.halted
    assert isinstance(error, Fenced)
    with pytest.raises(KnhkError):
        await house.submit(QUICK)
    async with asyncio.timeout(10):
        with pytest.raises(KnhkError):
            await house.control.cancel(accepted.workflow_id, actor="test")
    assert house.kinds(accepted.workflow_id) == ["workflow.submitted", "workflow.started"]


async def test_a_fenced_engine_keeps_nobody_waiting(build: Any) -> None:
    house = await build(latency_s=1.0)
    await house.store.acquire(0)
    requests = [asyncio.create_task(house.submit(QUICK)) for _ in range(2)]
    await asyncio.sleep(0.01)
    requests.append(asyncio.create_task(house.submit(QUICK)))
    answers = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 60)
    assert all(isinstance(answer, KnhkError) for answer in answers)


async def test_stopping_while_the_store_is_down_keeps_nobody_waiting(house: House, faults: Faults) -> None:
    accepted = await house.submit(workflow(step("a", "effect", params={"takes_s": 9.0})))
    faults.when = {"before", "reopen"}
    with pytest.raises(StorageUnavailable):
        await house.submit(QUICK)
    waiting = asyncio.create_task(house.control.cancel(accepted.workflow_id, actor="test"))
    await asyncio.sleep(0.01)
    await asyncio.wait_for(house.engine.stop(), 60)
    with pytest.raises(KnhkError):
        await asyncio.wait_for(waiting, 60)


async def test_timers_that_cannot_be_read_are_read_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = await house.submit(workflow(step("a", "wait", params={"duration": "5m"}), timeout="1h"))
    timers = type(house.store).timers

    async def broken(*_given: Any) -> Any:
        raise StorageUnavailable("the timers cannot be read")

    monkeypatch.setattr(type(house.store), "timers", broken)
    await asyncio.sleep(100)
    assert "timers" in house.engine.health()["persistence"]
    monkeypatch.setattr(type(house.store), "timers", timers)
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    assert house.engine.health()["persistence"] == "ok"
    assert asyncio.get_running_loop().time() == pytest.approx(300, abs=1)


async def test_nobody_is_told_what_follows_from_a_decision_that_is_not_durable(house: House, faults: Faults) -> None:
    name = (await house.submit(workflow(step("a", "effect", params={"takes_s": 600.0})))).workflow_id
    faults.when = {"before", "reopen"}
    with pytest.raises(StorageUnavailable):
        await house.control.pause(name, actor="a person")
    for again in (house.control.pause, house.control.resume):  # refused, and decided, by what is only in memory
        with pytest.raises(StorageUnavailable):
            await again(name, actor="another")
    faults.when.clear()
    await asyncio.sleep(5)
    assert (await house.fold(name)).state is RunState.RUNNING
    assert house.kinds(name)[-2:] == ["workflow.paused", "workflow.resumed"]
