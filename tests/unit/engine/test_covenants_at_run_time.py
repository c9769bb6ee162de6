"""What the covenants promise while a run goes on."""

from typing import Any

import pytest

from knhk.domain import payload
from knhk.domain.receipt import merkle_root
from knhk.domain.run import RunState
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House


async def test_q_an_invariant_that_breaks_after_a_step_is_final_and_names_the_rule(house: House) -> None:
    run = await house.run(
        workflow(
            step("a", "effect", params={"gives": 11}),
            step("b", "effect", ["a"]),
            covenant="Q",
            retries=3,
            invariants=[{"name": "small", "rule": "steps.a.output < 10"}],
        )
    )
    assert run.state is RunState.FAILED
    assert run.failure is not None
    assert (run.failure.code, run.failure.guard, run.failure.step) == ("KNHK-COVENANT-Q", "small", "a")
    assert "after step a" in run.failure.message
    assert house.effects.order() == ["a"]


async def test_q_an_invariant_is_checked_before_a_step_too(house: House) -> None:
    run = await house.run(
        workflow(
            step("a", "wait", params={"duration": "3s"}),
            step("b", "effect", ["a"]),
            covenant="Q",
            invariants=[{"name": "quick", "rule": "resources.elapsed_ms < 2000"}],
        )
    )
    assert run.failure is not None
    assert (run.failure.code, run.failure.guard, run.failure.step) == ("KNHK-COVENANT-Q", "quick", "b")
    assert "before step b" in run.failure.message
    assert house.effects.log == []


async def test_q_no_other_step_begins_once_an_invariant_is_broken(house: House) -> None:
    steps = [step("a", params={"output": 11}), step("b", "effect"), step("c", "effect")]
    run = await house.run(workflow(*steps, covenant="Q", invariants=["steps.a.output < 10"]))
    assert run.state is RunState.FAILED
    assert house.effects.log == []


async def test_q_a_run_that_keeps_its_invariants_completes(house: House) -> None:
    run = await house.run(
        workflow(
            step("a", params={"output": 1}),
            step("b", after=["a"]),
            covenant="Q",
            invariants=["steps.a.output < inputs.most", "resources.attempts <= 2"],
            inputs={"type": "object", "properties": {"most": {"type": "integer"}}},
        ),
        most=5,
    )
    assert run.state is RunState.COMPLETED


def calculation() -> bytes:
    """Sums of sums, some of them made in tasks that end in another order than they began."""
    leaves = [step(f"leaf{n}", "think", params={"takes_s": float((7 * n) % 5), "gives": n}) for n in range(20)]
    sums = [step(f"sum{n}", "sums", [f"leaf{n}", f"leaf{n + 1}"]) for n in range(19)]
    return workflow(*leaves, *sums, step("all", "sums", [f"sum{n}" for n in range(19)]), covenant="Pi")


@pytest.mark.parametrize("at_once", [1, 16])
async def test_pi_the_root_over_the_results_does_not_depend_on_the_number_of_workers(build: Any, at_once: int) -> None:
    house = await build(max_concurrent_steps=at_once)
    accepted = await house.submit(calculation(), wait_s=1000)
    run = await house.fold(accepted.workflow_id)
    values = [*range(20), *[2 * n + 1 for n in range(19)], 361]
    digests = [payload.digest(payload.encode(value)) for value in values]
    assert run.results_root == merkle_root(digests)
    assert accepted.results == {"all": 361}


async def test_chatman_a_run_that_takes_longer_than_eight_ticks_fails_and_names_the_guard(house: House) -> None:
    run = await house.run(workflow(step("a", "effect", params={"takes_s": 0.2}), covenant="Chatman"))
    assert run.state is RunState.FAILED
    assert run.failure is not None
    assert (run.failure.code, run.failure.guard) == ("KNHK-COVENANT-CHATMAN", "chatman.latency")
    assert run.ended_at_ns - run.submitted_at_ns == pytest.approx(100e6, rel=0.05)


async def test_chatman_a_quick_run_completes(house: House) -> None:
    run = await house.run(workflow(step("a", "effect", params={"takes_s": 0.05}), covenant="Chatman"))
    assert run.state is RunState.COMPLETED


async def test_chatman_waiting_for_a_slot_counts(build: Any) -> None:
    house = await build(max_active=1)
    await house.submit(workflow(step("a", "effect", params={"takes_s": 0.2})))
    run = await house.run(workflow(step("a", "effect"), covenant="Chatman"))
    assert run.state is RunState.FAILED


@pytest.mark.parametrize(("covenant", "kept"), [("O", True), ("Sigma", False)])
async def test_o_keeps_the_inputs_of_every_attempt(house: House, covenant: str, kept: bool) -> None:
    does = {"gives": 1, "fails_first": 1}
    run = await house.run(workflow(step("a", "effect", params=does, retries=1), covenant=covenant))
    inputs = {
        seq: payload.decode(raw)
        for (seq, slot), raw in house.store._state.payloads[run.workflow_id].items()
        if slot == 0
    }
    receipts = {one.seq: one for one in house.receipts(run.workflow_id)}
    if not kept:
        assert inputs == {}
        return
    assert list(inputs.values()) == [does, does]
    assert {receipts[seq].kind for seq in inputs} == {"step.retrying", "step.completed"}
    assert (await house.verify()).valid
