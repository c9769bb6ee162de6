"""`semantics: at_most_once`: never performed twice, whatever happens."""

import asyncio
from typing import Any

import pytest

from knhk.domain.errors import IllegalTransition
from knhk.domain.run import RunState
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House


def once(**does: Any) -> bytes:
    return workflow(step("pay", "effect", params=does, semantics="at_most_once"), step("b", "effect", ["pay"]))


async def test_the_start_is_journaled_before_the_effect(house: House) -> None:
    seen: list[list[str]] = []
    house.effects.on_effect = lambda one: seen.append(house.kinds(int(one.workflow_id[3:])))
    run = await house.run(once())
    assert run.state is RunState.COMPLETED
    assert "step.started" in seen[0]


async def test_after_a_crash_its_outcome_is_unknown_and_it_is_not_run_again(house: House) -> None:
    accepted = await house.submit(once(takes_s=10.0))
    await asyncio.sleep(1)
    await house.restart()
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.FAILED
    assert run.failure is not None
    assert (run.failure.code, run.failure.step) == ("KNHK-STEP-OUTCOME-UNKNOWN", "pay")
    assert house.effects.order() == ["pay"]
    with pytest.raises(IllegalTransition, match="pay"):
        await house.control.retry(accepted.workflow_id, actor="test")


async def test_a_failure_of_it_is_final_and_cannot_be_retried(house: House) -> None:
    run = await house.run(once(fails_first=1))
    assert run.state is RunState.FAILED
    assert house.effects.order() == ["pay"]
    with pytest.raises(IllegalTransition):
        await house.control.retry(run.workflow_id, actor="test")


async def test_cancelled_in_the_middle_it_cannot_be_retried(house: House) -> None:
    accepted = await house.submit(once(takes_s=10.0))
    await asyncio.sleep(1)
    await house.control.cancel(accepted.workflow_id, actor="test")
    with pytest.raises(IllegalTransition):
        await house.control.retry(accepted.workflow_id, actor="test")
    assert house.effects.order() == ["pay"]


async def test_completed_it_does_not_hinder_the_retry_of_a_later_step(house: House) -> None:
    pay = step("pay", "effect", semantics="at_most_once")
    run = await house.run(workflow(pay, step("b", "effect", ["pay"], params={"fails_first": 1})))
    assert run.state is RunState.FAILED
    await house.control.retry(run.workflow_id, actor="test")
    assert (await house.ended(run.workflow_id)).state is RunState.COMPLETED
    assert house.effects.order() == ["pay", "b", "b"]


async def test_cancelled_before_its_start_is_durable_it_has_no_effect(build: Any) -> None:
    house = await build(latency_s=1.0)
    request = asyncio.create_task(house.submit(once()))
    while not house.engine.scheduler.active:
        await asyncio.sleep(0.001)
    run_id = next(iter(house.engine.scheduler.active))
    await house.control.cancel(run_id, actor="test")
    await request
    await asyncio.sleep(10)
    assert house.effects.log == []
