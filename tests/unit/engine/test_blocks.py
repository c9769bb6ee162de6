"""Steps with steps inside: groups, foreach, switch, loops, parallel, catch; each with a crash in its middle."""

import asyncio
from typing import Any

import pytest

from knhk.actions.registry import Action
from knhk.domain.plan import ActionTraits
from knhk.domain.run import Run, RunState, StepState
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

COMPLETED, FAILED = RunState.COMPLETED, RunState.FAILED


def block(name: str, key: str, value: Any, after: Any = (), **rest: Any) -> dict[str, Any]:
    """A step that has something else in place of an action."""
    return {"name": name, key: value, **({"depends_on": list(after)} if after else {}), **rest}


def gives(name: str, value: Any, after: Any = (), **rest: Any) -> dict[str, Any]:
    return step(name, "process", after, params={"output": value}, **rest)


def effect(name: str, after: Any = (), *, rest: Any = None, **does: Any) -> dict[str, Any]:
    return step(name, "effect", after, params=does, **(rest or {}))


async def results(house: House, run: Run) -> Any:
    assert run.state is COMPLETED, run.failure
    return (await house.control.results(run.workflow_id))[1]


# -- Groups


async def test_a_group_sees_what_is_around_it_and_gives_its_last_outputs(house: House) -> None:
    run = await house.run(
        workflow(
            gives("a", 1),
            block(
                "g",
                "steps",
                [
                    gives("b", "${{ steps.a.output + 1 }}"),
                    gives("c", "${{ steps.b.output + steps.a.output }}", ["b"]),
                    block(
                        "deep",
                        "steps",
                        [gives("d", "${{ steps.b.output * 10 }}")],
                        ["b"],
                        output="${{ steps.d.output }}",
                    ),
                ],
                ["a"],
            ),
            gives("e", "${{ steps.g.output.c + steps.g.output.deep }}", ["g"]),
        )
    )
    assert await results(house, run) == {"e": 23}
    paths = [receipt.step for receipt in house.receipts(run.workflow_id) if receipt.kind == "step.completed"]
    assert sorted(paths) == ["a", "e", "g", "g/b", "g/c", "g/deep", "g/deep/d"]
    assert not house.leaks()


async def test_a_failure_inside_is_that_of_the_step_and_names_where(house: House) -> None:
    run = await house.run(workflow(block("g", "steps", [block("h", "steps", [effect("a", fails=True)])])))
    assert run.state is FAILED
    assert run.failure is not None
    assert (run.failure.code, run.failure.step) == ("TEST-FAILED", "g/h/a")


async def test_a_group_is_retried_as_a_whole(house: House) -> None:
    retry = {"max_attempts": 3, "delay": "1s", "jitter": False}
    inside = [effect("a"), step("b", "process", ["a"], params={"output": "${{ inputs.missing }}"})]
    run = await house.run(workflow(block("g", "steps", inside, retry=retry)))
    assert run.state is FAILED
    assert house.effects.order() == ["g/a"] * 3
    assert run.attempts == [3]


async def test_a_group_times_out_with_all_that_is_inside(house: House) -> None:
    inside = [effect("a", hangs=True), step("w", "wait", params={"duration": "9h"}), effect("after", ["w"])]
    run = await house.run(workflow(block("g", "steps", inside, timeout="10s"), timeout="1h"))
    assert run.state is FAILED
    assert run.failure is not None
    assert run.failure.code == "KNHK-STEP-TIMEOUT"
    assert asyncio.get_running_loop().time() == pytest.approx(10, abs=0.2)
    assert not house.leaks()


# -- Foreach


async def test_foreach_gives_results_in_order_whatever_the_order_of_the_ends(house: House) -> None:
    each = step(
        "each",
        "think",
        params={"takes_s": "${{ double(item) }}", "gives": "${{ [index, item] }}"},
        foreach={"in": "${{ inputs.times }}", "concurrency": 3},
    )
    run = await house.run(workflow(each), times=[5, 1, 4, 2, 3])
    assert await results(house, run) == {"each": [[0, 5], [1, 1], [2, 4], [3, 2], [4, 3]]}


async def test_foreach_over_a_map_and_over_nothing(house: House) -> None:
    run = await house.run(
        workflow(
            step(
                "pairs",
                "process",
                params={"output": "${{ p.key + p.value }}"},
                foreach={"in": {"a": "1", "b": "2"}, "as": "p"},
            ),
            step("none", "effect", foreach={"in": "${{ [] }}"}),
        )
    )
    assert await results(house, run) == {"pairs": ["a1", "b2"], "none": []}


async def test_foreach_works_on_so_many_items_at_a_time(house: House) -> None:
    each = step("each", "effect", params={"takes_s": 1.0}, foreach={"in": list(range(12)), "concurrency": 4})
    await house.run(workflow(each))
    assert asyncio.get_running_loop().time() == pytest.approx(3, abs=0.2)


async def test_foreach_with_steps_inside_has_a_scope_for_each_item(house: House) -> None:
    inside = [gives("a", "${{ item * 10 }}"), gives("b", "${{ steps.a.output + offset }}", ["a"])]
    nested = block(
        "inner", "steps", [gives("c", "${{ steps.b.output + item }}")], ["b"], foreach={"in": [1, 2], "as": "offset2"}
    )
    run = await house.run(
        workflow(
            block("each", "steps", [*inside, nested], foreach={"in": [1, 2, 3], "index": "offset"}),
        )
    )
    assert await results(house, run) == {
        "each": [
            {"inner": [{"c": 11}, {"c": 11}]},
            {"inner": [{"c": 23}, {"c": 23}]},
            {"inner": [{"c": 35}, {"c": 35}]},
        ]
    }
    paths = {receipt.step for receipt in house.receipts(run.workflow_id)}
    assert {"each[1]", "each[1]/b", "each[1]/inner[0]/c"} <= paths


@pytest.mark.parametrize(("allowed", "state"), [(2, COMPLETED), (1, FAILED)])
async def test_foreach_bears_so_many_failures(house: House, allowed: int, state: RunState) -> None:
    each = step(
        "each",
        "effect",
        params={"fails": "${{ item < 0 }}", "gives": "${{ item }}"},
        foreach={"in": [1, -2, 3, -4, 5], "max_failures": allowed, "concurrency": 1},
    )
    run = await house.run(workflow(each))
    assert run.state is state
    if state is COMPLETED:
        assert await results(house, run) == {"each": [1, None, 3, None, 5]}
    else:
        assert run.failure is not None
        assert run.failure.step == "each[3]"
        assert len(house.effects.log) == 4


async def test_foreach_over_what_is_no_list_fails(house: House) -> None:
    run = await house.run(workflow(step("each", "effect", foreach={"in": "${{ inputs.n }}"})), n=5)
    assert run.failure is not None
    assert run.failure.code == "KNHK-STEP-FOREACH"


async def test_ten_thousand_items(house: House) -> None:
    each = step(
        "each", "process", params={"output": "${{ item + 1 }}"}, foreach={"in": "${{ inputs.n }}", "concurrency": 100}
    )
    run = await house.run(workflow(each), n=list(range(10_000)))
    assert await results(house, run) == {"each": list(range(1, 10_001))}
    assert run.inner is not None
    assert not run.inner.frames


# -- Switch


@pytest.mark.parametrize(("amount", "given"), [(5, {"a": "small"}), (50, {"a": "middle"}), (500, {"b": "large"})])
async def test_switch_takes_the_first_case_that_holds(house: House, amount: int, given: Any) -> None:
    cases = [
        {"when": "inputs.n < 10", "steps": [gives("a", "small")]},
        {"when": "inputs.n < 100", "steps": [gives("a", "middle")]},
        {"steps": [gives("b", "large")]},
    ]
    run = await house.run(workflow(block("s", "switch", cases)), n=amount)
    assert await results(house, run) == {"s": given}


async def test_switch_without_a_case_that_holds_gives_nothing(house: House) -> None:
    run = await house.run(workflow(block("s", "switch", [{"when": "false", "steps": [gives("a", 1)]}])))
    assert await results(house, run) == {"s": None}


# -- Loops


async def test_until_goes_on_until_its_condition_holds(house: House) -> None:
    loop = {"condition": "last.n >= 3", "max": 10}
    count = gives("count", {"n": "${{ last == null ? 1 : last.n + 1 }}"}, until=loop)
    run = await house.run(workflow(count))
    assert await results(house, run) == {"count": {"n": 3}}
    assert {receipt.step for receipt in house.receipts(run.workflow_id)} >= {"count", "count[0]", "count[2]"}


async def test_while_may_not_even_begin(house: House) -> None:
    run = await house.run(
        workflow(
            step("never", "effect", **{"while": {"condition": "index > 0", "max": 3}}),
            gives("twice", "${{ index }}", **{"while": {"condition": "index < 2", "max": 3}}),
        )
    )
    assert await results(house, run) == {"never": None, "twice": 1}


async def test_a_loop_that_does_not_end_fails_at_its_bound(house: House) -> None:
    run = await house.run(workflow(step("l", "effect", until={"condition": "false", "max": 5})))
    assert run.failure is not None
    assert run.failure.code == "KNHK-STEP-LOOP"
    assert len(house.effects.log) == 5


# -- Parallel


async def test_branches_run_side_by_side(house: House) -> None:
    branches = [effect("a", takes_s=5.0, gives=1), block("b", "steps", [effect("x", takes_s=5.0, gives=2)])]
    run = await house.run(workflow(block("p", "parallel", {"branches": branches})))
    assert await results(house, run) == {"p": {"a": 1, "b": {"x": 2}}}
    assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.2)


async def test_of_competing_branches_the_first_counts_and_the_others_end(house: House) -> None:
    branches = [
        effect("slow", hangs=True),
        effect("broken", fails=True),
        effect("fast", takes_s=2.0, gives="it"),
        block("waits", "steps", [step("w", "wait", params={"duration": "9h"})]),
    ]
    run = await house.run(workflow(block("p", "parallel", {"branches": branches, "compete": True})))
    assert await results(house, run) == {"p": {"fast": "it"}}
    assert asyncio.get_running_loop().time() == pytest.approx(2, abs=0.2)
    assert not house.leaks()


async def test_competing_branches_that_all_fail_are_a_failure(house: House) -> None:
    branches = [effect("a", fails=True), effect("b", takes_s=1.0, fails=True)]
    run = await house.run(workflow(block("p", "parallel", {"branches": branches, "compete": True})))
    assert run.failure is not None
    assert run.failure.step == "p/b"


# -- Failures that are dealt with


async def test_continue_on_error_lets_the_rest_go_on(house: House) -> None:
    run = await house.run(
        workflow(
            effect("a", fails=True, rest={"continue_on_error": True}),
            gives("b", "${{ has(steps.a.output) ? 1 : 2 }}", ["a"]),
        )
    )
    assert await results(house, run) == {"b": 2}
    assert run.steps[0] is StepState.FAILED


async def test_catch_sees_the_error_and_the_step_has_completed_after_all(house: House) -> None:
    catch = {
        "as": "why",
        "steps": [gives("fix", "${{ why.code + ' ' + why.step }}")],
        "output": "${{ steps.fix.output }}",
    }
    run = await house.run(
        workflow(
            effect("a", fails=True, rest={"catch": catch}),
            block("g", "steps", [effect("x", fails=True), effect("y", ["x"])], catch=catch),
            gives("b", "${{ steps.a.output + ', ' + steps.g.output }}", ["a", "g"]),
        )
    )
    assert await results(house, run) == {"b": "TEST-FAILED a, TEST-FAILED g/x"}
    kinds = house.kinds(run.workflow_id, "a")
    assert kinds == ["step.caught", "step.completed"]
    assert "step.completed" in house.kinds(run.workflow_id, "a:catch/fix")


async def test_what_a_catch_gives_need_not_be_what_the_action_promises(house: House) -> None:
    registry = house.effects.registry()
    traits = ActionTraits("strict", pure=False, output_schema={"type": "string"})
    registry.register(Action(traits, "async", house.effects._effect, __name__))
    house.registry = registry
    await house.restart()
    catch = {"steps": [gives("x", 7)]}
    one = step("a", "strict", params={"fails": True}, catch=catch)
    assert await results(house, await house.run(workflow(one))) == {"a": {"x": 7}}
    refused = await house.run(workflow({**one, "output_schema": {"type": "integer"}}))
    assert refused.failure is not None
    assert refused.failure.code == "KNHK-STEP-OUTPUT", "its own schema is for what it gives, wherever that is from"


async def test_catch_is_only_for_the_failures_that_it_names_and_may_fail_itself(house: House) -> None:
    one = await house.run(
        workflow(effect("a", fails=True, rest={"catch": {"when": "error.code == 'OTHER'", "steps": [gives("x", 1)]}}))
    )
    assert one.failure is not None
    assert one.failure.step == "a"
    two = await house.run(workflow(effect("a", fails=True, rest={"catch": {"steps": [effect("x", fails=True)]}})))
    assert two.failure is not None
    assert two.failure.step == "a:catch/x"


async def test_a_broken_covenant_is_caught_by_nobody(house: House) -> None:
    catch = {"steps": [effect("never")]}
    run = await house.run(
        workflow(
            block("g", "steps", [effect("a")], catch=catch, continue_on_error=True),
            covenant="Q",
            invariants=["resources.attempts < 0"],
        )
    )
    assert run.failure is not None
    assert run.failure.code == "KNHK-COVENANT-Q"
    assert not house.effects.log


async def test_the_key_wait_is_a_pause(house: House) -> None:
    run = await house.run(
        workflow(block("w", "wait", "${{ inputs.pause }}"), block("v", "wait", {"duration": "1s", "output": 7}, ["w"])),
        pause="10s",
    )
    assert await results(house, run) == {"v": 7}
    assert asyncio.get_running_loop().time() == pytest.approx(11, abs=0.2)


# -- Crashes in the middle

EVERYTHING = workflow(
    gives("list", [1, 2, 3, 4]),
    block(
        "each",
        "steps",
        [
            effect("a", takes_s=1.0, gives="${{ item }}"),
            effect("b", ["a"], takes_s=1.0, gives="${{ steps.a.output * 2 }}"),
        ],
        ["list"],
        foreach={"in": "${{ steps.list.output }}", "concurrency": 2},
        output="${{ steps.b.output }}",
    ),
    step(
        "single",
        "effect",
        ["list"],
        params={"takes_s": 0.7, "gives": "${{ item }}"},
        foreach={"in": "${{ steps.list.output }}", "concurrency": 1},
    ),
    step(
        "loop", "effect", params={"takes_s": 1.0, "gives": "${{ index }}"}, until={"condition": "last == 3", "max": 9}
    ),
    block(
        "pick",
        "switch",
        [{"when": "steps.list.output[0] == 1", "steps": [effect("x", takes_s=3.0, gives=1)]}],
        ["list"],
    ),
    block(
        "race",
        "parallel",
        {"branches": [effect("one", hangs=True), effect("two", takes_s=2.5, gives=2)], "compete": True},
    ),
    effect(
        "broken",
        takes_s=1.0,
        fails=True,
        rest={"catch": {"steps": [effect("fix", takes_s=2.0, gives="${{ error.code }}")]}},
    ),
    block("timed", "steps", [step("w", "wait", params={"duration": "9h"})], timeout="3s", continue_on_error=True),
    name="everything",
)
GIVEN = {
    "each": [2, 4, 6, 8],
    "single": [1, 2, 3, 4],
    "loop": 3,
    "pick": {"x": 1},
    "race": {"two": 2},
    "broken": {"fix": "TEST-FAILED"},
}


@pytest.mark.parametrize("every_s", [0.31, 0.77, 1.13, 1.9])
async def test_every_construct_goes_on_after_crashes(house: House, every_s: float) -> None:
    accepted = await house.submit(EVERYTHING)
    for _ in range(3):
        await asyncio.sleep(every_s)
        await house.restart()
    run = await house.ended(accepted.workflow_id)
    assert await results(house, run) == GIVEN
    completed = [receipt.step for receipt in house.receipts(run.workflow_id) if receipt.kind == "step.completed"]
    assert len(completed) == len(set(completed))
    assert (await house.verify()).valid
    assert not house.leaks()


async def test_steps_inside_are_shown_while_they_run_and_afterwards(house: House) -> None:
    accepted = await house.submit(EVERYTHING)
    await asyncio.sleep(1.5)
    shown = {one["name"]: one for one in (await house.control.status(accepted.workflow_id))["inside"]}
    assert shown["each[0]/a"]["state"] == "completed"
    assert shown["each[0]/b"] == {"name": "each[0]/b", "action": "effect", "state": "running", "attempts": 0}
    assert shown["broken:catch/fix"]["state"] == "running"
    await house.ended(accepted.workflow_id)
    told = (await house.control.inspect(accepted.workflow_id))["inside"]
    after = {one["name"]: one for one in told}
    assert (after["each[3]/b"]["state"], after["each[3]/b"]["output"]) == ("completed", 8)
    assert after["loop[2]"]["action"] == "effect"
    assert after["pick/x"]["state"] == "completed"
    assert (await house.control.status(accepted.workflow_id))["inside"] == []


async def test_a_cancel_in_the_middle_leaves_nothing(house: House) -> None:
    accepted = await house.submit(EVERYTHING)
    await asyncio.sleep(1.2)
    await house.control.cancel(accepted.workflow_id, actor="test")
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.CANCELLED
    assert not house.leaks()


async def test_a_retry_of_a_failed_run_goes_into_the_step_again(house: House) -> None:
    inside = [effect("a"), step("b", "effect", ["a"], params={"fails_first": 1}, retries=0)]
    run = await house.run(workflow(block("g", "steps", inside)))
    assert run.state is FAILED
    await house.control.retry(run.workflow_id, actor="test")
    run = await house.ended(run.workflow_id)
    assert run.state is COMPLETED
    assert house.effects.order() == ["g/a", "g/b", "g/b"]
