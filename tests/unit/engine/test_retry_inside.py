"""An operator's retry of a step with steps inside: what had completed there is not done again."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knhk.domain import event as ev
from knhk.domain.run import RunState
from tests.simulation.clock import in_virtual_time
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House


def each(count: int, *, concurrency: int = 3, fails: str = "index == 5", **rest: Any) -> dict[str, Any]:
    """Items of which some fail in their first attempt, and no other is made."""
    params = {"fails_first": f"${{{{ {fails} ? 1 : 0 }}}}", "gives": "${{ item * 10 }}"}
    return step("each", "effect", params=params, foreach={"in": list(range(count)), "concurrency": concurrency}, **rest)


def retried(house: House, workflow_id: int) -> ev.Retried:
    return next(one.detail for one in house.events(workflow_id) if isinstance(one.detail, ev.Retried))


async def test_only_the_failed_item_of_many_is_done_again(house: House) -> None:
    run = await house.run(workflow(each(1_000, concurrency=10), step("after", after=["each"])))
    assert run.state is RunState.FAILED
    before = {one.step: one for one in house.effects.log}
    assert 6 <= len(before) < 20  # No further item began.
    await house.restart()
    assert await house.control.retry(run.workflow_id, actor="anna") == ("each",)
    assert retried(house, run.workflow_id).resumed == ("each",)
    again = await house.ended(run.workflow_id)
    assert again.state is RunState.COMPLETED
    done = Counter(one.step for one in house.effects.log)
    assert [name for name, times in done.items() if times > 1] == ["each[5]"]
    shown = await house.control.inspect(run.workflow_id)
    assert shown["steps"][0]["output"] == [index * 10 for index in range(1_000)]
    assert house.kinds(run.workflow_id, "each").count("step.opened") == 1
    assert (await house.verify()).valid
    assert not house.leaks()


async def test_items_that_were_let_fail_are_done_again_too(house: House) -> None:
    step_ = each(12, fails="index % 3 == 0")
    step_["foreach"]["max_failures"] = 2
    run = await house.run(workflow(step_))
    assert run.state is RunState.FAILED
    await house.control.retry(run.workflow_id, actor="anna")
    assert (await house.ended(run.workflow_id)).state is RunState.COMPLETED
    done = Counter(one.step for one in house.effects.log)
    assert {name for name, times in done.items() if times > 1} <= {"each[0]", "each[3]", "each[6]", "each[9]"}
    given = [index * 10 for index in range(9)]  # The last one failed for the first time, and that is let be.
    assert (await house.control.results(run.workflow_id))[1] == {"each": [*given, None, 100, 110]}


@pytest.mark.parametrize("kind", ["steps", "parallel", "switch", "while"])
async def test_the_steps_of_a_block_that_had_completed_stay(house: House, kind: str) -> None:
    inside = [step("a", "effect", params={"gives": 7}), step("b", "effect", params={"fails_first": 1})]
    last = step("c", "process", ["a", "b"], params={"output": "${{ steps.a.output }}"})
    block: dict[str, Any] = {
        "steps": {"steps": [*inside, last]},
        "parallel": {"parallel": {"branches": inside}},
        "switch": {"switch": [{"steps": [*inside, last]}]},
        "while": {"while": {"condition": "index < 3", "max": 5}, "steps": [*inside, last]},
    }[kind]
    run = await house.run(workflow({"name": "g", "timeout": "1h", **block}))
    assert run.state is RunState.FAILED
    await house.control.retry(run.workflow_id, actor="anna")
    await house.restart()
    again = await house.ended(run.workflow_id)
    if kind == "while":  # The first time has not completed: it is done again as a whole, and nothing was there to keep.
        assert (again.state, retried(house, run.workflow_id).resumed) == (RunState.FAILED, ())
        return
    assert again.state is RunState.COMPLETED
    assert Counter(one.step for one in house.effects.log) == {"g/a": 1, "g/b": 2}
    assert (await house.verify()).valid
    assert not house.leaks()


async def test_what_was_under_way_when_the_run_was_cancelled_goes_on(house: House) -> None:
    slow = step("each", "effect", params={"takes_s": 10.0}, foreach={"in": list(range(9)), "concurrency": 2})
    accepted = await house.submit(workflow(slow))
    await asyncio.sleep(25)
    await house.control.cancel(accepted.workflow_id, actor="anna")
    await house.control.retry(accepted.workflow_id, actor="anna")
    await asyncio.sleep(1)
    assert house.engine.executor.running == 2
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    done = Counter(one.step for one in house.effects.log)
    assert [done[f"each[{index}]"] for index in range(9)] == [1, 1, 1, 1, 2, 2, 1, 1, 1]


async def test_what_was_compensated_or_comes_after_it_is_done_as_a_whole(house: House) -> None:
    undo = {"compensate": {"action": "effect"}}
    for descriptor in (
        workflow(each(8, **undo), name="inside"),
        workflow(step("a", "effect", **undo), {**each(8), "depends_on": ["a"]}, name="before"),
    ):
        run = await house.run(descriptor)
        assert run.state is RunState.FAILED
        await house.control.retry(run.workflow_id, actor="anna")
        assert retried(house, run.workflow_id).resumed == ()
        await house.ended(run.workflow_id)
        assert house.kinds(run.workflow_id, "each").count("step.opened") == 2
    assert (await house.verify()).valid


async def test_from_a_step_means_all_of_it(house: House) -> None:
    run = await house.run(workflow(each(8)))
    await house.control.time_machine.retry_from(run.workflow_id, "each", actor="anna")
    await house.ended(run.workflow_id)
    assert house.kinds(run.workflow_id, "each").count("step.opened") == 2


@settings(max_examples=25, deadline=None)
@given(
    failing=st.sets(st.integers(4, 11), min_size=1),
    concurrency=st.integers(1, 4),
    most=st.integers(0, 3),
    crashes=st.lists(st.floats(0, 6), max_size=3),
)
def test_every_item_completes_once(failing: set[int], concurrency: int, most: int, crashes: list[float]) -> None:
    in_virtual_time(lambda: _life(failing, concurrency, most, crashes))


async def _life(failing: set[int], concurrency: int, most: int, crashes: list[float]) -> None:
    house = await House().start()
    one = each(12, concurrency=concurrency, fails=f"index in {sorted(failing)}")
    one["foreach"]["max_failures"] = most
    one["params"]["takes_s"] = 1.0
    accepted = await house.submit(workflow(one, timeout="9h"))
    for _ in range(20):
        for after_s in crashes:
            await asyncio.sleep(after_s)
            await house.restart()
        run = await house.ended(accepted.workflow_id)
        if run.state is RunState.COMPLETED:
            break
        await house.control.retry(accepted.workflow_id, actor="anna")
    assert run.state is RunState.COMPLETED
    completed = Counter(
        event.step for event in house.events(accepted.workflow_id) if isinstance(event.detail, ev.StepCompleted)
    )
    assert set(completed.values()) == {1}
    assert (await house.verify()).valid
    assert not house.leaks()
    await house.engine.stop()
