"""Child workflows: exactly one for each attempt, its end told once, cancelled with its parent, over crashes too."""

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from knhk.domain.errors import IllegalTransition
from knhk.domain.event import NO_ORIGIN
from knhk.domain.run import RunState
from knhk.engine.live import LiveRun
from tests.simulation.clock import in_virtual_time
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House


async def put(house: House, *steps: Any, name: str = "part", **spec: Any) -> None:
    await house.engine.definitions.put(workflow(*steps, name=name, **{"timeout": "50h", **spec}), actor="anna")


def parent(*, name: str = "part", **rest: Any) -> bytes:
    params = {"name": name, "input": {"n": "${{ inputs.n }}"}}
    child = step("child", "workflow", params=params, **rest)
    return workflow(child, step("after", after=["child"], params={"got": "${{ steps.child.output }}"}), timeout="100h")


def children(house: House) -> list[int]:
    """The runs that have a parent."""
    found = []
    for one, sealed in house.store._state.receipts.items():
        detail = sealed[0].receipt().typed_detail()
        if getattr(detail, "child_of", NO_ORIGIN).workflow_id:
            found.append(one)
    return found


async def settled(house: House) -> None:
    await asyncio.sleep(60)
    assert house.leaks() == {}
    assert (await house.verify()).valid


async def test_a_step_gives_what_its_child_gives(house: House) -> None:
    await put(
        house, step("double", params={"output": "${{ inputs.n * 2 }}"}), outputs={"m": "${{ steps.double.output }}"}
    )
    accepted = await house.submit(parent(), wait_s=60, n=21)
    assert accepted.results == {"after": {"got": {"m": 42}}}
    (child,) = children(house)
    shown = await house.control.status(child)
    assert shown["parent"] == {"workflow_id": f"wf-{accepted.workflow_id}", "step": "child"}
    assert shown["definition"] == {"name": "part", "version": 1}
    await settled(house)


async def test_a_parent_whose_children_end_one_by_one_is_not_folded_for_each(house: House) -> None:
    await put(house, step("nap", "wait", params={"duration": "${{ string(inputs.n) + 'h' }}"}))
    each = step("each", "workflow", foreach={"in": list(range(1, 41)), "concurrency": 40}, params={"name": "part"})
    each["params"]["input"] = {"n": "${{ item }}"}
    accepted = await house.submit(workflow(each, timeout="100h"))
    loads: Counter[int] = Counter()
    load = house.engine.loader.load

    async def counted(workflow_id: int) -> LiveRun:
        loads[workflow_id] += 1
        return await load(workflow_id)

    house.engine.loader.load = counted  # type: ignore[method-assign]
    await asyncio.sleep(42 * 3600)
    assert (await house.fold(accepted.workflow_id)).state is RunState.COMPLETED
    assert loads.total() <= 2 * 40 + 2
    assert loads[accepted.workflow_id] <= 1
    await settled(house)


async def test_parent_and_child_wait_on_disk_and_go_on_after_crashes(house: House) -> None:
    await put(house, step("nap", "wait", params={"duration": "1h"}), step("work", "effect", ["nap"]))
    accepted = await house.submit(parent(), n=1)
    await asyncio.sleep(1)
    assert not house.engine.scheduler.active
    assert house.store._state.live == set()
    (child,) = children(house)
    shown = (await house.control.status(accepted.workflow_id))["waiting_on"]
    assert [(one["kind"], one["workflow_id"]) for one in shown] == [("child", f"wf-{child}")]
    for _ in range(3):
        await asyncio.sleep(900)
        await house.restart()
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    assert children(house) == [child]
    assert house.kinds(accepted.workflow_id).count("child.ended") == 1
    await settled(house)
    assert house.kinds(child)[-1] == "workflow.settled"


@pytest.mark.parametrize("crash", [False, True])
async def test_cancelling_flows_down(house: House, crash: bool) -> None:
    await put(house, step("nap", "wait", params={"duration": "9h"}), name="leaf")
    await put(house, step("inner", "workflow", params={"name": "leaf"}))
    accepted = await house.submit(parent(), n=1)
    await asyncio.sleep(5)
    assert len(children(house)) == 2
    await house.control.cancel(accepted.workflow_id, actor="anna")
    if crash:
        await house.restart()
    await asyncio.sleep(5)
    assert [(await house.fold(one)).state for one in children(house)] == [RunState.CANCELLED] * 2
    await settled(house)


async def test_the_steps_timeout_is_the_childs(house: House) -> None:
    await put(house, step("nap", "wait", params={"duration": "9h"}))
    accepted = await house.submit(parent(timeout="1h"), n=1)
    run = await house.ended(accepted.workflow_id)
    assert run.failure is not None
    assert run.failure.code == "KNHK-CHILD-TIMEOUT"
    await asyncio.sleep(5)
    assert (await house.fold(children(house)[0])).state is RunState.CANCELLED
    await settled(house)


async def test_a_failed_child_is_retried_as_another_child(house: House) -> None:
    await put(house, step("bad", "effect", params={"fails": True}))
    retry = {"max_attempts": 3, "delay": "10s", "jitter": False}
    accepted = await house.submit(parent(retry=retry), n=1)
    run = await house.ended(accepted.workflow_id)
    assert run.failure is not None
    assert run.failure.code == "KNHK-CHILD-FAILED"
    assert "it failed for good" in run.failure.message
    assert len(children(house)) == 3
    await settled(house)


async def test_an_unknown_definition_and_endless_descent_fail_the_step(house: House) -> None:
    accepted = await house.submit(parent(name="nothing"), wait_s=60, n=1)
    run = await house.fold(accepted.workflow_id)
    assert run.failure is not None
    assert run.failure.code == "KNHK-CHILD-START"
    await put(house, step("again", "workflow", params={"name": "part"}))
    accepted = await house.submit(parent(), n=1)
    assert (await house.ended(accepted.workflow_id)).state is RunState.FAILED
    assert len(children(house)) == 16
    await settled(house)


async def test_many_parents_do_not_block_the_slots_that_their_children_need(build: Any) -> None:
    house = await build(max_active=2, max_queued=3)
    await put(house, step("work", "effect", params={"takes_s": 1.0}))
    ids = []
    for _ in range(5):
        ids.append((await house.submit(parent(), n=1)).workflow_id)
    for one in ids:
        assert (await house.ended(one)).state is RunState.COMPLETED


@example(gaps=[], latency=0.01, cancels=True, naps="1ms")
@settings(max_examples=20, deadline=None)
@given(
    gaps=st.lists(st.sampled_from([0.0, 0.003, 0.5, 3.0, 20.0]), max_size=5),
    latency=st.sampled_from([0.0, 0.01, 0.2]),
    cancels=st.booleans(),
    naps=st.sampled_from(["1ms", "2s", "30s"]),
)
def test_one_child_an_attempt_and_one_end(gaps: list[float], latency: float, cancels: bool, naps: str) -> None:
    in_virtual_time(lambda: _life(gaps, latency, cancels, naps))


async def _life(gaps: list[float], latency: float, cancels: bool, naps: str) -> None:
    house = await House(latency_s=latency).start()
    await put(house, step("nap", "wait", params={"duration": naps}), step("b", "effect", ["nap"]))
    ids = [(await house.submit(parent(), n=number)).workflow_id for number in range(3)]
    for gap in gaps:
        await asyncio.sleep(gap)
        await house.restart()
    if cancels:
        with suppress(IllegalTransition):  # it may have ended
            await house.control.cancel(ids[0], actor="anna")
        await house.restart()
    for one in ids:
        assert (await house.ended(one)).ended
        assert house.kinds(one).count("child.ended") <= 1
    assert (await house.fold(ids[1])).state is RunState.COMPLETED
    await asyncio.sleep(200)
    links = Counter(house.events(one)[0].detail.child_of.workflow_id for one in children(house))  # type: ignore[union-attr]
    assert set(links.values()) <= {1}
    for one in children(house):
        assert (await house.fold(one)).ended
        assert house.kinds(one).count("workflow.settled") == 1
    assert house.leaks() == {}
    assert (await house.verify()).valid
    await house.engine.stop()
