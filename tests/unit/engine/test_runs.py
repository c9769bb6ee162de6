"""How runs go: order, data, retries, timeouts, what a failure does to the rest."""

import asyncio
import gc
from itertools import pairwise
from typing import Any

import pytest

from knhk.domain import event as ev
from knhk.domain.errors import InvalidDescriptor, InvalidInputs, WorkflowNotFound
from knhk.domain.run import RunState, StepState
from tests.simulation.clock import EPOCH_NS
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

SECOND = 1_000_000_000


def seconds(at_ns: int) -> float:
    """Virtual seconds since the loop began."""
    return (at_ns - EPOCH_NS) / SECOND


async def test_a_workflow_of_pure_steps_is_one_commit(house: House) -> None:
    run = await house.run(workflow(step("a"), step("b", after=["a"]), step("c", after=["b"])))
    assert run.state is RunState.COMPLETED
    head = await house.store.head(0)
    assert head is not None
    assert head.block().height == 0


async def test_finished_runs_leave_nothing_that_only_the_garbage_collector_can_find(house: House) -> None:
    """Each collection stops the event loop, for tens of milliseconds under load."""

    def another(number: int) -> bytes:
        return workflow(step("a", params={"n": number}), step("b", after=["a"]), name=f"workflow-{number}")

    await house.submit(another(0), wait_s=10)
    gc.collect()
    gc.disable()
    try:
        for number in range(1, 101):
            await house.submit(another(number), wait_s=10)
        await asyncio.sleep(1)  # The projector has taken them in.
        assert gc.collect() < 100
    finally:
        gc.enable()


async def test_steps_run_after_what_they_depend_on_and_see_its_output(house: House) -> None:
    order = workflow(
        step("sum", "sums", ["two", "three"]),
        step("two", "sums", params={"numbers": [1, 1]}),
        step("three", "sums", params={"numbers": "${{ [inputs.n, 2] }}"}),
        inputs={"type": "object", "properties": {"n": {"type": "integer"}}},
        outputs={"total": "${{ steps.sum.output }}", "text": "it is ${{ steps.sum.output }}"},
    )
    accepted = await house.submit(order, wait_s=10, n=1)
    assert accepted.results == {"total": 5, "text": "it is 5"}
    shown = await house.control.inspect(accepted.workflow_id)
    assert shown["inputs"] == {"n": 1}
    assert {one["name"]: one["output"] for one in shown["steps"]} == {"two": 2, "three": 3, "sum": 5}


async def test_independent_steps_run_at_the_same_time(house: House) -> None:
    run = await house.run(workflow(*[step(f"s{n}", "effect", params={"takes_s": 10.0}) for n in range(20)]))
    assert seconds(run.ended_at_ns) == pytest.approx(10, abs=0.1)


async def test_no_more_attempts_run_at_once_than_the_limit(build: Any) -> None:
    house = await build(max_concurrent_steps=4)
    run = await house.run(workflow(*[step(f"s{n}", "effect", params={"takes_s": 10.0}) for n in range(20)]))
    assert seconds(run.ended_at_ns) == pytest.approx(50, abs=0.1)


async def test_a_retry_waits_longer_each_time(house: House) -> None:
    retry = {"max_attempts": 5, "delay": "1s", "factor": 3, "max_delay": "10s", "jitter": False}
    run = await house.run(workflow(step("a", "effect", params={"fails_first": 4}, retry=retry)))
    assert run.state is RunState.COMPLETED
    times = [seconds(effect.at_ns) for effect in house.effects.log]
    assert [round(b - a, 2) for a, b in pairwise(times)] == [1, 3, 9, 10]
    assert [effect.attempt for effect in house.effects.log] == [1, 2, 3, 4, 5]
    assert len({effect.key for effect in house.effects.log}) == 1


async def test_retries_end_when_the_attempts_are_used_up(house: House) -> None:
    run = await house.run(workflow(step("a", "effect", params={"fails_first": 9}), retries=2))
    assert run.state is RunState.FAILED
    assert run.failure is not None
    assert (run.failure.code, run.failure.step) == ("TEST-AGAIN", "a")
    assert len(house.effects.log) == 3


@pytest.mark.parametrize(
    ("condition", "attempts"),
    [
        ({"when": "error.code == 'TEST-AGAIN'"}, 3),
        ({"when": "error.code == 'OTHER'"}, 1),
        ({"except_when": "error.attempt == 2"}, 2),
        ({"except_when": "error.message.contains('never')"}, 3),
    ],
)
async def test_conditions_decide_what_is_retried(house: House, condition: dict[str, str], attempts: int) -> None:
    retry = {"max_attempts": 3, "delay": "1ms", **condition}
    await house.run(workflow(step("a", "effect", params={"fails_first": 9}, retry=retry)))
    assert len(house.effects.log) == attempts


async def test_a_final_failure_is_not_retried_and_nothing_after_it_runs(house: House) -> None:
    run = await house.run(workflow(step("a", "effect", params={"fails": True}), step("b", "effect", ["a"]), retries=5))
    assert run.state is RunState.FAILED
    assert house.effects.order() == ["a"]
    assert run.steps == [StepState.FAILED, StepState.PENDING]


async def test_what_was_under_way_when_a_step_failed_is_let_finish(house: House) -> None:
    slow, bad = step("slow", "effect", params={"takes_s": 30.0}), step("bad", "effect", params={"fails": True})
    run = await house.run(workflow(slow, bad, step("next", "effect", ["slow"])))
    assert run.state is RunState.FAILED
    assert run.steps == [StepState.COMPLETED, StepState.FAILED, StepState.PENDING]
    assert seconds(run.ended_at_ns) == pytest.approx(30, abs=0.1)


async def test_no_further_step_begins_in_the_turn_in_which_one_failed(house: House) -> None:
    run = await house.run(workflow(step("bad", "fail"), step("other", "effect")))
    assert run.state is RunState.FAILED
    assert house.effects.log == []


async def test_a_step_that_hangs_is_ended_by_its_timeout(house: House) -> None:
    retry = {"max_attempts": 2, "delay": "1s", "jitter": False}
    run = await house.run(workflow(step("a", "effect", params={"hangs": True}, timeout="10s", retry=retry)))
    assert run.failure is not None
    assert run.failure.code == "KNHK-STEP-TIMEOUT"
    assert len(house.effects.log) == 2
    assert seconds(run.ended_at_ns) == pytest.approx(21, abs=0.1)


async def test_a_run_that_takes_too_long_is_timed_out(house: House) -> None:
    run = await house.run(workflow(step("a", "effect", params={"hangs": True}), timeout="90s"))
    assert run.state is RunState.TIMED_OUT
    assert seconds(run.ended_at_ns) == pytest.approx(90, abs=0.1)
    assert house.leaks() == {}


async def test_a_big_flat_run_leaves_room_for_others(house: House) -> None:
    big = await house.submit(workflow(*[step(f"s{n}") for n in range(1000)], step("end", "effect")))
    small = await house.run(workflow(step("a", "effect")))
    assert small.state is RunState.COMPLETED
    assert (await house.ended(big.workflow_id)).state is RunState.COMPLETED


async def test_outputs_that_cannot_be_made_fail_the_run(house: House) -> None:
    declared = {"n": {"value": "${{ steps.a.output }}", "schema": {"type": "integer"}}}
    run = await house.run(workflow(step("a", params={"output": "text"}), outputs=declared))
    assert run.state is RunState.FAILED
    assert run.failure is not None
    assert run.failure.code == "KNHK-RUN-OUTPUTS"


async def test_an_output_that_is_too_large_fails_the_step(build: Any) -> None:
    house = await build(max_payload_bytes=1000)
    run = await house.run(workflow(step("a", "effect", params={"gives": "x" * 900})))
    assert run.state is RunState.COMPLETED
    run = await house.run(workflow(step("a", "effect", params={"gives": "x" * 1001})))
    assert run.failure is not None
    assert run.failure.code == "KNHK-STEP-OUTPUT"
    assert "1000" in run.failure.message


async def test_an_output_that_does_not_match_its_schema_fails_the_step(house: House) -> None:
    run = await house.run(workflow(step("a", params={"output": 1}, output_schema={"type": "string"})))
    assert run.failure is not None
    assert run.failure.code == "KNHK-STEP-OUTPUT"


async def test_params_that_cannot_be_evaluated_fail_the_step(house: House) -> None:
    run = await house.run(workflow(step("a"), step("b", "effect", ["a"], params={"takes_s": "${{ 1 / 0 }}"})))
    assert run.failure is not None
    assert run.failure.code == "KNHK-STEP-PARAMS"


async def test_bad_submissions_change_nothing(house: House) -> None:
    with pytest.raises(InvalidDescriptor):
        await house.submit(workflow(step("a", "no-such-action")))
    needs_n = {"type": "object", "required": ["n"]}
    with pytest.raises(InvalidInputs):
        await house.submit(workflow(step("a"), inputs=needs_n))
    assert await house.store.head(0) is None
    with pytest.raises(WorkflowNotFound):
        await house.control.status(1 << 40)


async def test_the_answer_waits_for_the_end_even_of_a_run_that_parks(house: House) -> None:
    long = workflow(step("a", "wait", params={"duration": "1h", "output": 7}), timeout="2h")
    accepted = await house.submit(long, wait_s=7200)
    assert accepted.state == RunState.COMPLETED
    assert accepted.results == {"a": 7}
    assert asyncio.get_running_loop().time() == pytest.approx(3600, abs=0.1)


async def test_an_answer_that_is_not_ready_in_time_says_how_far_the_run_is(house: House) -> None:
    long = workflow(step("a", "wait", params={"duration": "1h"}), timeout="2h")
    accepted = await house.submit(long, wait_s=10)
    assert (accepted.state, accepted.results) == (RunState.RUNNING, None)
    assert asyncio.get_running_loop().time() == pytest.approx(10, abs=0.1)
    assert not house.engine.scheduler.active, "the run parks once nobody waits for it"
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED


async def test_every_receipt_verifies_and_nothing_is_left_over(house: House) -> None:
    for _ in range(10):
        await house.run(workflow(step("a", "effect"), step("b", "wait", ["a"], params={"duration": "1m"})))
    report = await house.verify()
    assert report.valid
    assert report.verified_count == report.total_count == 10 * 7
    assert house.leaks() == {}


async def test_events_tell_when_attempts_began(house: House) -> None:
    run = await house.run(workflow(step("a", "effect", params={"takes_s": 5.0})))
    done = next(one for one in house.events(run.workflow_id) if isinstance(one.detail, ev.StepCompleted))
    assert done.at_ns - done.detail.started_at_ns == pytest.approx(5 * SECOND, rel=0.01)
