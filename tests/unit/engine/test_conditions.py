"""`when`, and dependencies on steps that failed or were skipped."""

import asyncio
from typing import Any

import pytest

from knhk.domain.run import RunState, StepState
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

COMPLETED, FAILED, SKIPPED = StepState.COMPLETED, StepState.FAILED, StepState.SKIPPED


def on(name: str, *states: str) -> dict[str, Any]:
    return {"step": name, "on": list(states)}


async def test_a_step_whose_condition_does_not_hold_is_skipped(house: House) -> None:
    run = await house.run(
        workflow(
            step("a", "process", params={"output": {"n": 1}}),
            step("yes", "effect", ["a"], when="steps.a.output.n == 1 && inputs.go"),
            step("no", "effect", ["a"], when="${{ steps.a.output.n > 1 }}"),
        ),
        go=True,
    )
    assert run.state is RunState.COMPLETED
    assert run.steps == [COMPLETED, COMPLETED, SKIPPED]
    assert house.effects.order() == ["yes"]
    skipped = house.receipts(run.workflow_id)
    assert [receipt.step for receipt in skipped if receipt.kind == "step.skipped"] == ["no"]


async def test_what_depends_on_a_skipped_step_is_skipped_too_unless_it_says_otherwise(house: House) -> None:
    run = await house.run(
        workflow(
            step("a", "effect", when="false"),
            step("plain", "effect", ["a"]),
            step("further", "effect", ["plain"]),
            step("instead", "effect", [on("a", "skipped")]),
            step("either", "effect", [on("a", "completed", "skipped"), "instead"]),
            step("never", "effect", [on("instead", "failed")]),
        )
    )
    assert run.state is RunState.COMPLETED
    assert run.steps == [SKIPPED, SKIPPED, SKIPPED, COMPLETED, COMPLETED, SKIPPED]
    assert house.effects.order() == ["instead", "either"]


async def test_a_failure_that_a_step_waits_for_does_not_fail_the_run(house: House) -> None:
    run = await house.run(
        workflow(
            step("a", "effect", params={"fails": True}),
            step("plain", "effect", ["a"]),
            step("repair", "effect", [on("a", "failed")]),
            step("after", "effect", [on("plain", "completed", "skipped"), "repair"]),
        )
    )
    assert run.state is RunState.COMPLETED
    assert run.steps == [FAILED, SKIPPED, COMPLETED, COMPLETED]
    assert house.effects.order() == ["a", "repair", "after"]


async def test_a_condition_that_cannot_be_evaluated_fails_the_step(house: House) -> None:
    run = await house.run(workflow(step("a", "effect", when="inputs.missing > 1")))
    assert run.state is RunState.FAILED
    assert run.failure is not None
    assert run.failure.code == "KNHK-STEP-WHEN"


async def test_an_output_that_there_is_not_can_be_asked_for(house: House) -> None:
    run = await house.run(
        workflow(
            step("a", "process", when="inputs.go", params={"output": 7}),
            step(
                "b",
                "process",
                [on("a", "completed", "skipped")],
                params={"output": "${{ has(steps.a.output) ? steps.a.output : 0 }}"},
            ),
            outputs={"n": "${{ steps.b.output }}"},
        ),
        go=False,
    )
    assert (await house.control.results(run.workflow_id))[1] == {"n": 0}


@pytest.mark.parametrize("after_s", [0.5, 1.5, 2.5])
async def test_a_decision_holds_over_a_crash(house: House, after_s: float) -> None:
    accepted = await house.submit(
        workflow(
            step("a", "effect", params={"takes_s": 1.0, "fails": True}),
            step("skipped", "effect", ["a"]),
            step("repair", "effect", [on("a", "failed"), on("skipped", "skipped")], params={"takes_s": 1.0}),
            step("last", "effect", ["repair"], params={"takes_s": 1.0}),
        )
    )
    await asyncio.sleep(after_s)
    await house.restart()
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.COMPLETED
    assert run.steps == [FAILED, SKIPPED, COMPLETED, COMPLETED]
    assert house.kinds(run.workflow_id).count("step.skipped") == 1


async def test_a_retry_leaves_failures_that_were_dealt_with_alone(house: House) -> None:
    run = await house.run(
        workflow(
            step("a", "effect", params={"fails": True}),
            step("repair", "effect", [on("a", "failed")]),
            step("b", "effect", ["repair"], params={"fails_first": 1}),
            step("plain", "effect", ["a", "b"]),
            retries=0,
        )
    )
    assert run.state is RunState.FAILED
    await house.control.retry(run.workflow_id, actor="test")
    run = await house.ended(run.workflow_id)
    assert run.state is RunState.COMPLETED
    assert run.steps == [FAILED, COMPLETED, COMPLETED, SKIPPED]
    assert house.effects.order() == ["a", "repair", "b", "b"]
