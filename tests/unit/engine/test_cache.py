"""Step `cache`: what was given is given again while it may be, and to nobody else."""

import asyncio
from typing import Any

import pytest

from knhk import testing
from knhk.domain.errors import InvalidDescriptor
from knhk.domain.event import StepReused
from knhk.domain.run import RunState
from knhk.engine import cache_rows
from knhk.engine.projector import FOLD
from knhk.sdk.builder import Workflow
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

HOUR_S = 3600


def cached(department: str = "", *, gives: Any = 1, key: Any = "${{ inputs.k }}", **rest: Any) -> bytes:
    one = step("a", "effect", params={"gives": gives}, cache={"key": key, "ttl": "1h", **rest.pop("cache", {})}, **rest)
    return workflow(one, step("b", after=["a"], params={"got": "${{ steps.a.output }}"}), department=department)


async def ran(house: House, text: bytes, **inputs: Any) -> tuple[int, StepReused | None]:
    """The run, once it has ended, and by what its step was reused."""
    accepted = await house.submit(text, wait_s=600, **inputs)
    run = await house.fold(accepted.workflow_id)
    assert run.state is RunState.COMPLETED, run.failure
    assert (await house.control.results(run.workflow_id))[1] == {"b": {"got": 1}}
    return run.workflow_id, (run.reused or {}).get(0)


async def test_what_was_given_is_given_again_and_the_receipt_says_by_whom(house: House) -> None:
    first, reused = await ran(house, cached(), k="x")
    assert reused is None
    seq = house.kinds(first).index("step.completed")
    for _ in range(2):
        again, reused = await ran(house, cached(), k="x")
        assert reused == StepReused(first, seq, "cache")
        assert house.kinds(again, "a") == ["step.reused"]
        shown = (await house.control.inspect(again))["steps"][0]
        assert shown["reused"] == {"workflow_id": f"wf-{first}", "seq": seq, "why": "cache"}
        assert (shown["state"], shown["attempts"], shown["output"]) == ("completed", 1, 1)
        await house.restart()
    assert len(house.effects.of("a")) == 1
    assert house.leaks() == {}
    assert (await house.verify()).valid


async def test_until_it_is_too_old(house: House) -> None:
    await ran(house, cached(), k="x")
    await asyncio.sleep(HOUR_S - 60)
    assert (await ran(house, cached(), k="x"))[1] is not None
    await asyncio.sleep(120)
    assert (await ran(house, cached(), k="x"))[1] is None, "using it again does not make it younger"
    await asyncio.sleep(2 * HOUR_S)
    await ran(house, cached(), k="y")
    await asyncio.sleep(1)
    left = [*await house.store.rows(FOLD, cache_rows.CACHED), *await house.store.rows(FOLD, cache_rows.EXPIRY)]
    assert len(left) == 2, "what is over is not kept"


@pytest.mark.parametrize(
    "other",
    [
        (cached(), {"k": "y"}),
        (cached("sales"), {"k": "x"}),
        (cached(gives="${{ 1 }}"), {"k": "x"}),
        (cached(output_schema={"type": "integer"}), {"k": "x"}),
        (cached(key=["x"]), {"k": "x"}),
    ],
    ids=["key", "department", "params", "schema", "kind of key"],
)
async def test_another_is_another(house: House, other: Any) -> None:
    await ran(house, cached(), k="x")
    assert (await ran(house, other[0], **other[1]))[1] is None
    assert len(house.effects.of("a")) == 2


async def test_constant_params_of_descriptors_of_one_shape_do_not_mix(house: House) -> None:
    texts = [cached(gives=gives, key="same") for gives in (1, 2)]
    given = [(await house.submit(text, wait_s=600, k=1)).results for text in texts]
    assert given == [{"b": {"got": 1}}, {"b": {"got": 2}}]


async def test_what_was_erased_is_done_again(house: House) -> None:
    first, _ = await ran(house, cached(), k="x")
    await house.control.erase(first, actor="anna")
    second, reused = await ran(house, cached(), k="x")
    assert reused is None
    third, reused = await ran(house, cached(), k="x")
    assert reused is not None
    assert reused.source == second
    await house.control.erase(second, actor="anna")
    assert (await house.control.results(third))[1] == {"b": {"got": 1}}, "who used it has it"


async def test_two_at_a_time_both_run_and_failures_are_not_kept(house: House) -> None:
    slow = workflow(step("a", "effect", params={"takes_s": 1}, cache={"key": 1, "ttl": "1h"}))
    for accepted in await asyncio.gather(*[house.submit(slow, wait_s=60) for _ in range(2)]):
        assert house.kinds(accepted.workflow_id, "a") == ["step.completed"]
    fails = workflow(step("f", "effect", params={"fails": True}, cache={"key": 1, "ttl": "1h"}))
    for _ in range(2):
        assert (await house.run(fails)).state is RunState.FAILED
    assert len(house.effects.of("f")) == 2


async def test_in_a_loop_and_after_a_crash_in_the_middle(house: House) -> None:
    each = step("each", "effect", foreach={"in": ["x", "y", "x", "x"], "concurrency": 1}, params={"takes_s": 5})
    each["cache"] = {"key": "${{ item }}", "ttl": "1h"}
    accepted = await house.submit(workflow(each))
    await asyncio.sleep(12)
    await house.restart()
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.COMPLETED
    assert [house.kinds(run.workflow_id, f"each[{n}]") for n in range(4)] == [
        *[["step.completed"]] * 2,
        *[["step.reused"]] * 2,
    ]
    inside = (await house.control.inspect(run.workflow_id))["inside"]
    assert [one.get("reused", {}).get("seq") for one in inside] == [None, None, 3, 3]
    assert all(one["state"] == "completed" for one in inside)


async def test_what_the_run_has_just_completed_is_found_however_slow_the_store_is(house: House) -> None:
    house.latency_s = 2.0
    await house.restart()
    one = {"cache": {"key": "${{ item }}", "ttl": "1h"}, "foreach": {"in": [1, 1, 2, 2, 1, 2], "concurrency": 1}}
    run = await house.run(workflow(step("each", "think", **one)))
    assert [house.kinds(run.workflow_id, f"each[{n}]")[-1][5:] for n in range(6)] == [
        *("completed", "reused", "completed", "reused", "reused", "reused")
    ]


async def test_who_is_cancelled_or_paused_while_it_looks(house: House) -> None:
    house.latency_s = 0.5
    await house.restart()
    cancelled = (await house.submit(cached(), k="x")).workflow_id
    await house.control.cancel(cancelled, actor="anna")
    paused = (await house.submit(cached(), k="x")).workflow_id
    await house.control.pause(paused, actor="anna")
    await asyncio.sleep(60)
    assert house.effects.of("a") == []
    await house.control.resume(paused, actor="anna")
    assert (await house.ended(paused)).state is RunState.COMPLETED
    assert house.leaks() == {}


async def test_what_an_operator_wants_again_is_done_again(house: House) -> None:
    first, _ = await ran(house, cached(), k="x")
    await house.control.time_machine.retry_from(first, "a", actor="anna")
    await house.ended(first)
    assert house.kinds(first, "a") == ["step.completed", "step.completed"]
    fork = await house.control.time_machine.fork(first, "a", inputs={}, actor="anna")
    await house.ended(fork.workflow_id)
    assert house.kinds(fork.workflow_id, "a") == ["step.completed"]
    _, reused = await ran(house, cached(), k="x")
    assert reused is not None
    assert reused.source == fork.workflow_id, "the latest counts"


async def test_a_step_that_was_not_run_is_not_compensated(house: House) -> None:
    text = workflow(
        step("a", "effect", cache={"key": 1, "ttl": "1h"}, compensate={"action": "effect"}),
        step("bad", "fail", ["a"]),
    )
    for state in ("compensated", "completed"):
        run = await house.run(text)
        assert (run.state, str(run.steps[0])) == (RunState.FAILED, state)
    assert house.effects.order() == ["a", "a:compensate"]


async def test_a_key_that_cannot_be_found_out_fails_the_step(house: House) -> None:
    run = await house.run(cached(key="${{ inputs.none }}"))
    assert run.failure is not None
    assert (run.failure.code, run.failure.step) == ("KNHK-STEP-EXPRESSION", "a")


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (step("a", "effect", semantics="at_most_once", cache={"key": 1, "ttl": "1h"}), "at_most_once: true"),
        (step("a", "wait", params={"duration": "1s"}, cache={"key": 1, "ttl": "1h"}), "cannot be used again"),
        (step("a", "effect", cache={"key": 1, "ttl": "0s"}), "longer than nothing"),
        (step("a", "effect", cache={"key": 1}), "'ttl' is missing"),
        ({"name": "a", "steps": [step("b")], "cache": {"key": 1, "ttl": "1h"}}, "goes with 'action'"),
    ],
)
async def test_what_cannot_be(house: House, one: Any, message: str) -> None:
    with pytest.raises(InvalidDescriptor) as refused:
        await house.submit(workflow(one))
    assert message in str(refused.value.problems)


async def test_an_effect_at_most_once_if_it_is_asked_for(house: House) -> None:
    text = cached(semantics="at_most_once", cache={"at_most_once": True})
    assert (await ran(house, text, k="x"))[1] is None
    assert (await ran(house, text, k="x"))[1] is not None


def test_with_the_builder_and_in_a_rehearsal() -> None:
    flow = Workflow("prices")
    skus = flow.input("skus", type="array")
    item = "${{ item }}"
    flow.step(
        "price", "shop.price", {"sku": item}, foreach={"in": skus, "concurrency": 1}, cache={"key": item, "ttl": "1d"}
    )
    result = testing.run(flow, {"skus": ["tea", "cup", "tea"]}, actions={"shop.price": lambda call: call.params["sku"]})
    assert result.outputs == {"price": ["tea", "cup", "tea"]}
    assert [call.step for call in result.calls("shop.price")] == ["price[0]", "price[1]"]
    assert result.kinds("price[2]") == ["step.reused"]
