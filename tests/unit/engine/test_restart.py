"""Starting is recovering: what goes on after a crash, and that deadlines and pauses hold over it."""

import asyncio

import pytest

from knhk.domain.errors import InvalidDescriptor, JournalCorrupt
from knhk.domain.run import RunState
from tests.simulation.clock import EPOCH_NS
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_completed_steps_are_not_run_again(house: House) -> None:
    chain = [step(f"s{n}", "effect", [f"s{n - 1}"] if n else [], params={"takes_s": 1.0}) for n in range(6)]
    accepted = await house.submit(workflow(*chain))
    for _ in range(3):
        await asyncio.sleep(1.5)
        await house.restart()
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    assert house.kinds(accepted.workflow_id).count("step.completed") == 6
    durable_in_order = list(dict.fromkeys(house.effects.order()))
    assert durable_in_order == [f"s{n}" for n in range(6)]


async def test_a_retry_keeps_its_pause_over_a_restart_and_is_made_once(house: House) -> None:
    retry = {"max_attempts": 2, "delay": "60s", "max_delay": "60s", "jitter": False}
    accepted = await house.submit(workflow(step("a", "effect", params={"fails_first": 1}, retry=retry)))
    await asyncio.sleep(10)
    await house.restart()
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    assert [effect.attempt for effect in house.effects.log] == [1, 2]
    assert house.effects.log[1].at_ns - house.effects.log[0].at_ns >= 60_000_000_000


async def test_a_second_attempt_that_was_under_way_is_taken_up_once(house: House) -> None:
    retry = {"max_attempts": 2, "delay": "1ms", "jitter": False}
    slow = step("a", "effect", params={"fails_first": 1, "takes_s": 10.0}, retry=retry, timeout="60s")
    accepted = await house.submit(workflow(slow))
    await asyncio.sleep(15)
    await house.restart()
    await asyncio.sleep(1)
    assert house.engine.executor.running == 1
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    assert [effect.attempt for effect in house.effects.log] == [1, 2, 2]


async def test_a_step_times_out_when_it_was_to_although_the_process_died(house: House) -> None:
    accepted = await house.submit(workflow(step("a", "effect", params={"hangs": True}, timeout="100s"), timeout="1h"))
    await asyncio.sleep(50)
    await house.restart()
    run = await house.ended(accepted.workflow_id)
    assert run.failure is not None
    assert run.failure.code == "KNHK-STEP-TIMEOUT"
    assert now() == pytest.approx(100, abs=0.2)


async def test_a_run_times_out_when_it_was_to_although_the_process_died(house: House) -> None:
    accepted = await house.submit(workflow(step("a", "effect", params={"hangs": True}), timeout="100s"))
    await asyncio.sleep(50)
    await house.restart()
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.TIMED_OUT
    assert run.ended_at_ns - EPOCH_NS == pytest.approx(100e9, rel=0.01)


async def test_a_deadline_that_passed_while_nobody_ran_is_kept_at_the_next_start(house: House) -> None:
    accepted = await house.submit(workflow(step("a", "wait", params={"duration": "1h"}), timeout="100s"))
    await house.crash()
    await asyncio.sleep(1000)
    await house.start()
    assert (await house.ended(accepted.workflow_id)).state is RunState.TIMED_OUT
    assert now() == pytest.approx(1000, abs=1)


async def test_runs_that_waited_for_a_slot_start_in_their_order(house: House) -> None:
    house.settings = type(house.settings)(node_id="node-1", threads=1, max_active=1)
    await house.restart()
    named = [workflow(step(f"s{n}", "effect", params={"takes_s": 1.0})) for n in range(5)]
    ids = [(await house.submit(one)).workflow_id for one in named]
    await house.restart()
    for one in ids:
        assert (await house.ended(one)).state is RunState.COMPLETED
    assert list(dict.fromkeys(house.effects.order())) == [f"s{n}" for n in range(5)]


async def test_a_damaged_run_is_named_and_the_others_go_on(house: House) -> None:
    damaged = await house.submit(workflow(step("a", "effect", params={"takes_s": 9.0})))
    good = await house.submit(workflow(step("a", "effect", params={"takes_s": 9.0})))
    await house.crash()
    chain = house.store._state.receipts[damaged.workflow_id]
    chain[0] = type(chain[0])(chain[0].hash, chain[0].body[:-1] + b"\x01")
    await asyncio.sleep(0.01)
    await house.start()
    assert (await house.ended(good.workflow_id)).state is RunState.COMPLETED
    assert f"wf-{damaged.workflow_id}" in house.engine.health()["persistence"]
    with pytest.raises(Exception, match="do not have the hash"):
        await house.control.cancel(damaged.workflow_id, actor="test")


async def test_a_run_whose_descriptor_is_lost_is_named(house: House) -> None:
    accepted = await house.submit(workflow(step("a", "effect", params={"takes_s": 9.0})))
    await house.crash()
    house.store._state.descriptors.clear()
    await asyncio.sleep(0.01)
    await house.start()
    assert "corrupt" in house.engine.health()["persistence"]
    with pytest.raises(JournalCorrupt):
        await house.control.status(accepted.workflow_id)


async def test_a_run_of_an_action_that_is_gone_does_not_keep_the_engine_from_starting(house: House) -> None:
    accepted = await house.submit(workflow(step("a", "effect", params={"takes_s": 9.0})))
    other = await house.submit(workflow(step("a", "wait", params={"duration": "9s"})))
    full = house.effects.registry()
    house.registry = type(full)()
    for action in full:
        if action.name != "effect":
            house.registry.register(action)
    await house.restart()
    assert (await house.ended(other.workflow_id)).state is RunState.COMPLETED
    run = await house.ended(accepted.workflow_id)
    assert run.failure is not None
    assert run.failure.code == "KNHK-ACTION-UNKNOWN"
    with pytest.raises(InvalidDescriptor):
        await house.submit(workflow(step("a", "effect", params={"takes_s": 9.0})))
    house.registry = full
    await house.restart()
    await house.control.retry(accepted.workflow_id, actor="test")
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
