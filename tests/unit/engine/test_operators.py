"""Cancel, pause, resume, retry, erase: what each does, and when it is refused."""

import asyncio
from typing import Any

import pytest

from knhk.domain.errors import IllegalTransition, WorkflowNotFound
from knhk.domain.run import RunState, StepState
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

SLOW = workflow(step("a", "effect", params={"takes_s": 10.0}), step("b", "effect", ["a"]))
FAILING = workflow(step("a", "effect"), step("b", "effect", ["a"], params={"fails_first": 1}), step("c", after=["b"]))


async def submitted(house: House, descriptor: bytes, after_s: float = 1.0) -> int:
    accepted = await house.submit(descriptor)
    await asyncio.sleep(after_s)
    return accepted.workflow_id


async def test_cancel_ends_a_run_and_stops_what_is_under_way(house: House) -> None:
    run_id = await submitted(house, SLOW)
    await house.control.cancel(run_id, actor="ada", reason="enough")
    run = await house.ended(run_id)
    assert run.state is RunState.CANCELLED
    assert run.failure is not None
    assert run.failure.message == "cancelled: enough"
    await asyncio.sleep(20)
    assert house.effects.order() == ["a"]
    assert house.receipts(run_id)[-1].actor == "ada"
    assert house.leaks() == {}


async def test_cancel_clears_the_deadline_of_a_cancelled_attempt(house: House) -> None:
    run_id = await submitted(house, workflow(step("a", "effect", params={"hangs": True}, timeout="2h"), timeout="5h"))
    await house.control.cancel(run_id, actor="test")
    assert house.leaks() == {}


async def test_a_paused_run_finishes_what_is_under_way_and_begins_nothing(house: House) -> None:
    run_id = await submitted(house, SLOW)
    await house.control.pause(run_id, actor="test")
    await asyncio.sleep(60)
    shown = await house.control.status(run_id)
    assert shown["state"] == "paused"
    assert [one["state"] for one in shown["steps"]] == ["completed", "pending"]
    assert shown["waiting_on"][0]["kind"] == "paused"
    await house.control.resume(run_id, actor="test")
    assert (await house.ended(run_id)).state is RunState.COMPLETED


async def test_a_paused_run_stays_paused_over_a_restart_and_leaves_memory(house: House) -> None:
    run_id = await submitted(house, SLOW)
    await house.control.pause(run_id, actor="test")
    await asyncio.sleep(60)
    assert not house.engine.scheduler.active
    await house.restart()
    await asyncio.sleep(60)
    assert (await house.control.status(run_id))["state"] == "paused"
    await house.control.resume(run_id, actor="test")
    assert (await house.ended(run_id)).state is RunState.COMPLETED
    assert house.effects.order() == ["a", "b"]


async def test_the_deadline_of_a_paused_run_goes_on(house: House) -> None:
    run_id = await submitted(house, workflow(step("a", "wait", params={"duration": "1s"}), timeout="1h"), after_s=0)
    await house.control.pause(run_id, actor="test")
    run = await house.ended(run_id)
    assert run.state is RunState.TIMED_OUT
    assert run.ended_at_ns - run.started_at_ns == pytest.approx(3600e9, rel=0.01)


async def test_a_run_that_waits_for_a_slot_can_be_paused_resumed_and_cancelled(build: Any) -> None:
    house = await build(max_active=1)
    first = await submitted(house, SLOW, after_s=0)
    second = await submitted(house, SLOW, after_s=0)
    third = await submitted(house, SLOW, after_s=0)
    await house.control.pause(second, actor="test")
    await house.control.resume(second, actor="test")
    await house.control.cancel(third, actor="test")
    assert (await house.control.status(second))["state"] == "pending"
    assert (await house.ended(first)).state is RunState.COMPLETED
    assert (await house.ended(second)).state is RunState.COMPLETED
    assert (await house.ended(third)).state is RunState.CANCELLED
    assert house.leaks() == {}


async def test_retry_goes_on_from_the_failed_steps_under_the_same_id(house: House) -> None:
    run = await house.run(FAILING)
    assert run.state is RunState.FAILED
    assert await house.control.retry(run.workflow_id, actor="test") == ("b",)
    again = await house.ended(run.workflow_id)
    assert again.state is RunState.COMPLETED
    assert house.effects.order() == ["a", "b", "b"]
    assert again.attempts == [1, 2, 1]
    assert "workflow.retried" in house.kinds(run.workflow_id)


async def test_a_retried_step_has_all_its_attempts_again(house: House) -> None:
    retry = {"max_attempts": 2, "delay": "1ms"}
    run = await house.run(workflow(step("a", "effect", params={"fails_first": 3}, retry=retry)))
    assert run.attempts == [2]
    await house.control.retry(run.workflow_id, actor="test")
    assert (await house.ended(run.workflow_id)).attempts == [4]


async def test_retry_after_cancel_runs_what_was_under_way_again(house: House) -> None:
    run_id = await submitted(house, SLOW)
    await house.control.cancel(run_id, actor="test")
    await house.control.retry(run_id, actor="test")
    assert (await house.ended(run_id)).state is RunState.COMPLETED
    assert house.effects.order() == ["a", "a", "b"]


async def test_retry_after_a_timeout_gets_the_whole_time_again(house: House) -> None:
    run = await house.run(workflow(step("a", "wait", params={"duration": "50s"}), timeout="40s"))
    assert run.state is RunState.TIMED_OUT
    assert run.steps == [StepState.CANCELLED]
    await house.control.retry(run.workflow_id, actor="test")
    again = await house.ended(run.workflow_id)
    assert again.state is RunState.TIMED_OUT
    assert again.ended_at_ns - run.ended_at_ns == pytest.approx(40e9, rel=0.01)


async def test_a_retry_survives_a_crash(house: House) -> None:
    run = await house.run(FAILING)
    await house.control.retry(run.workflow_id, actor="test")
    await house.restart()
    assert (await house.ended(run.workflow_id)).state is RunState.COMPLETED


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel"])
async def test_an_ended_run_cannot_be_changed(house: House, verb: str) -> None:
    run = await house.run(workflow(step("a")))
    with pytest.raises(IllegalTransition):
        await getattr(house.control, verb)(run.workflow_id, actor="test")
    with pytest.raises(IllegalTransition):
        await house.control.retry(run.workflow_id, actor="test")


async def test_what_does_not_fit_the_state_is_refused_and_writes_nothing(house: House) -> None:
    run_id = await submitted(house, SLOW)
    before = house.kinds(run_id)
    for verb in (house.control.resume, house.control.retry, house.control.erase):
        with pytest.raises(IllegalTransition):
            await verb(run_id, actor="test")  # type: ignore[operator]
    assert house.kinds(run_id) == before
    await house.control.pause(run_id, actor="test")
    with pytest.raises(IllegalTransition):
        await house.control.pause(run_id, actor="test")
    for verb in (house.control.cancel, house.control.pause, house.control.resume, house.control.retry):
        with pytest.raises(WorkflowNotFound):
            await verb(1 << 40, actor="test")  # type: ignore[operator]


async def test_only_one_of_many_operators_cancels(house: House) -> None:
    run_id = await submitted(house, SLOW)
    outcomes = await asyncio.gather(
        *[house.control.cancel(run_id, actor=f"op-{n}") for n in range(5)], return_exceptions=True
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert house.kinds(run_id).count("workflow.cancelled") == 1


async def test_erase_deletes_the_payloads_and_every_receipt_still_verifies(house: House) -> None:
    run = await house.run(workflow(step("a", "effect", params={"gives": "secret"}), covenant="O"), name="Ada")
    assert house.store._state.payloads[run.workflow_id]
    await house.control.erase(run.workflow_id, actor="test", reason="asked for")
    assert not house.store._state.payloads.get(run.workflow_id)
    shown = await house.control.inspect(run.workflow_id)
    assert (shown["erased"], shown["inputs"], shown["outputs"]) == (True, {}, {})
    assert (await house.verify()).valid
    await house.control.erase(run.workflow_id, actor="test")
    assert house.kinds(run.workflow_id).count("payload.erased") == 1
    with pytest.raises(IllegalTransition):
        await house.control.retry(run.workflow_id, actor="test")


async def test_following_an_erased_run_comes_to_an_end(house: House) -> None:
    run = await house.run(workflow(step("a")))
    await house.control.erase(run.workflow_id, actor="test")
    assert (await house.ended(run.workflow_id, within_s=60)).erased


async def test_a_decision_with_a_key_is_taken_once(house: House) -> None:
    undo = {"action": "effect", "params": {"takes_s": 30.0}}
    nap = step("b", "wait", ["a"], params={"duration": "1h"})
    run_id = await submitted(house, workflow(step("a", "effect", compensate=undo), nap, timeout="9h"))
    control = house.control
    for _ in range(2):
        await control.pause(run_id, actor="ada", key="1")
    await control.resume(run_id, actor="ben")
    await control.pause(run_id, actor="ada", key="1")  # as before, although somebody has resumed it since
    assert (await house.fold(run_id)).state is RunState.RUNNING
    await control.cancel(run_id, actor="ada", key="1")  # a key is of one kind of decision
    await house.restart()
    control = house.control
    await control.cancel(run_id, actor="ada", key="1")
    with pytest.raises(IllegalTransition, match="about to end as cancelled"):
        await control.cancel(run_id, actor="ada", key="2")
    run = await house.ended(run_id)
    assert (run.state, run.steps[0]) == (RunState.CANCELLED, StepState.COMPENSATED)
    await control.cancel(run_id, actor="ada", key="1")
    assert await control.retry(run_id, actor="ada", key="1") == ("a", "b")
    assert await control.retry(run_id, actor="ada", key="1") == ()
    await control.cancel(run_id, actor="ada", key="1")  # that was for the time before the retry
    assert (await house.fold(run_id)).state is RunState.RUNNING
    kinds = house.kinds(run_id)
    assert [kinds.count(f"workflow.{one}") for one in ("paused", "cancelled", "retried")] == [1, 1, 1]
    await control.cancel(run_id, actor="ada")
    await house.ended(run_id)
    assert (await house.verify()).valid
