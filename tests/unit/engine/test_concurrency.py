"""Concurrency keys, rate limits, priorities and fairness: never exceeded, never leaked, over crashes too."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knhk.domain.errors import IllegalTransition, InvalidDescriptor, InvalidInputs, Overloaded
from knhk.domain.event import Started
from knhk.domain.run import RunState
from knhk.engine.control import Submission
from tests.simulation.clock import in_virtual_time
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

SECOND = 1_000_000_000


def limited(takes_s: float = 10.0, *, limit: int = 1, on_limit: str = "queue", key: str = "", **spec: Any) -> bytes:
    concurrency = {"limit": limit, "on_limit": on_limit, **({"key": key} if key else {})}
    return workflow(step("a", "effect", params={"takes_s": takes_s}), concurrency=concurrency, **spec)


def parking(**spec: Any) -> bytes:
    return workflow(step("a", "wait", params={"duration": "1h"}), timeout="9h", **spec)


def intervals(house: House, ids: list[int]) -> list[tuple[int, int]]:
    """When each run started and ended."""
    found = []
    for one in ids:
        events = house.events(one)
        starts = [event.at_ns for event in events if isinstance(event.detail, Started)]
        found.append((starts[0], events[-1].at_ns))
    return found


def most_at_once(spans: list[tuple[int, int]]) -> int:
    return max(sum(start <= at < end for start, end in spans) for at, _ in spans)


async def test_runs_with_a_key_wait_for_each_other_and_not_for_others(house: House) -> None:
    text = limited(key="${{ inputs.customer }}")
    ids = [(await house.submit(text, customer=one)).workflow_id for one in ("anna", "anna", "ben", "anna")]
    assert len(house.engine.scheduler.active) == 2
    other = await house.submit(workflow(step("b")), wait_s=5)
    assert other.state == "completed"
    for one in ids:
        assert (await house.ended(one)).state is RunState.COMPLETED
    anna = [ids[0], ids[1], ids[3]]
    assert most_at_once(intervals(house, anna)) == 1
    assert [start for start, _ in intervals(house, anna)] == sorted(start for start, _ in intervals(house, anna))
    assert house.leaks() == {}


async def test_workflows_that_name_the_same_key_share_it(house: House) -> None:
    first = await house.submit(limited(key="database", name="one"))
    second = await house.submit(limited(key="database", name="two", limit=2))
    third = await house.submit(limited(key="database", name="three"))
    assert [one.state for one in (first, second, third)] == ["running", "running", "pending"]


@pytest.mark.parametrize(("on_limit", "state"), [("cancel", "cancelled"), ("fail", "failed")])
async def test_a_run_that_would_not_wait_ends_at_once(house: House, on_limit: str, state: str) -> None:
    text = limited(on_limit=on_limit)
    first = await house.submit(text)
    second = await house.submit(text, wait_s=5)
    assert second.state == state
    run = await house.fold(second.workflow_id)
    assert run.failure is not None
    assert "concurrency key 'orders'" in run.failure.message
    await house.ended(first.workflow_id)
    assert (await house.submit(text)).state == "running"


async def test_a_parked_run_holds_its_key_over_a_crash_and_only_until_its_end(house: House) -> None:
    held = await house.submit(parking(concurrency={"limit": 1, "key": "k"}))
    assert not house.engine.scheduler.active
    await house.restart()
    waiting = await house.submit(limited(key="k"))
    assert waiting.state == "pending"
    await house.restart()
    assert (await house.fold(waiting.workflow_id)).state is RunState.PENDING
    await house.control.cancel(held.workflow_id, actor="anna")
    assert (await house.ended(waiting.workflow_id)).state is RunState.COMPLETED
    assert house.leaks() == {}
    await house.restart()
    assert (await house.submit(limited(key="k"))).state == "running"


async def test_a_retried_run_needs_its_key_again(house: House) -> None:
    fails = workflow(step("a", "effect", params={"fails": True}), concurrency={"limit": 1, "key": "k"})
    failed = await house.submit(fails, wait_s=5)
    assert failed.state == "failed"
    holder = await house.submit(limited(key="k"))
    with pytest.raises(IllegalTransition, match=f"held by wf-{holder.workflow_id}"):
        await house.control.retry(failed.workflow_id, actor="anna")
    await house.ended(holder.workflow_id)
    await house.control.retry(failed.workflow_id, actor="anna")
    await house.ended(failed.workflow_id)
    assert (await house.submit(limited(key="k"))).state == "running"


async def test_starts_are_limited_in_any_window_over_crashes_too(house: House) -> None:
    text = workflow(step("a", "effect"), rate_limit={"limit": 3, "per": "60s"}, timeout="1h")
    ids = [(await house.submit(text)).workflow_id for _ in range(10)]
    for _ in range(4):
        await asyncio.sleep(25)
        await house.restart()
    for one in ids:
        assert (await house.ended(one)).state is RunState.COMPLETED
    starts = sorted(start for start, _ in intervals(house, ids))
    for first, later in zip(starts, starts[3:], strict=False):
        assert later - first >= 60 * SECOND
    assert starts[-1] - starts[0] < 3.1 * 60 * SECOND
    assert house.leaks() == {}


async def test_greater_priority_goes_first_among_those_that_wait(build: Any) -> None:
    house = await build(max_active=1)
    slow = workflow(step("a", "effect", params={"takes_s": 10.0}))
    ids = [(await house.submit(slow)).workflow_id]
    for priority in (10, 90, None, 90):
        spec = {} if priority is None else {"priority": priority}
        ids.append((await house.submit(workflow(step("a", "effect", params={"takes_s": 10.0}), **spec))).workflow_id)
    for one in ids:
        await house.ended(one)
    order = sorted(range(5), key=lambda at: intervals(house, [ids[at]])[0][0])
    assert order == [0, 2, 4, 3, 1]


async def test_a_department_that_floods_the_queue_does_not_starve_another(build: Any) -> None:
    """Fairness, measured: with 4 slots and both departments waiting, starts alternate; each gets half of the slots."""
    house = await build(max_active=4)
    ids = {}
    for number in range(60):
        text = workflow(step("a", "effect", params={"takes_s": 1.0}), department="loud", priority=100)
        ids[(await house.submit(text)).workflow_id] = "loud"
        if number >= 40:
            text = workflow(step("a", "effect", params={"takes_s": 1.0}), department="quiet", priority=0)
            ids[(await house.submit(text)).workflow_id] = "quiet"
    for one in ids:
        await house.ended(one)
    spans = [(one, *intervals(house, [one])[0]) for one in ids]
    last_quiet = max(start for one, start, _ in spans if ids[one] == "quiet")
    first_quiet = min(start for one, start, _ in spans if ids[one] == "quiet")
    started = Counter(ids[one] for one, start, _ in spans if first_quiet <= start <= last_quiet)
    assert abs(started["loud"] - started["quiet"]) <= 4
    assert house.leaks() == {}


async def test_a_full_queue_still_takes_departments_that_have_less_than_their_share(build: Any) -> None:
    house = await build(max_active=1, max_queued=4)
    slow = {"takes_s": 10.0}
    for _ in range(5):
        await house.submit(workflow(step("a", "effect", params=slow), department="loud"))
    with pytest.raises(Overloaded):
        await house.submit(workflow(step("a", "effect", params=slow), department="loud"))
    for _ in range(2):
        await house.submit(workflow(step("a", "effect", params=slow), department="quiet"))
    with pytest.raises(Overloaded):
        await house.submit(workflow(step("a", "effect", params=slow), department="quiet"))
    assert (await house.submit(workflow(step("a", "effect", params=slow), department="third"))).state == "pending"
    assert len(house.engine.scheduler.pending) <= 8


async def test_a_key_that_is_none_is_refused(house: House) -> None:
    with pytest.raises(InvalidInputs, match=r"concurrency\.key"):
        await house.submit(limited(key="${{ inputs.customer }}"))
    with pytest.raises(InvalidInputs, match="text or a number"):
        await house.submit(limited(key="${{ inputs.customer }}"), customer=[1])
    with pytest.raises(InvalidDescriptor, match="read `inputs`"):
        await house.submit(limited(key="${{ steps.a.output }}"))
    assert house.store._state.receipts == {}


_RUNS = st.lists(
    st.tuples(st.sampled_from(["x", "y"]), st.sampled_from([0.0, 1.0, 7.0]), st.sampled_from(["a", "b"])), max_size=14
)


@settings(max_examples=25, deadline=None)
@given(runs=_RUNS, limit=st.integers(1, 3), slots=st.integers(1, 4), crashes=st.integers(0, 3), parks=st.booleans())
def test_limits_are_never_exceeded_and_never_leak(
    runs: list[tuple[str, float, str]], limit: int, slots: int, crashes: int, parks: bool
) -> None:
    in_virtual_time(lambda: _life(runs, limit, slots, crashes, parks))


async def _life(runs: list[tuple[str, float, str]], limit: int, slots: int, crashes: int, parks: bool) -> None:
    from knhk.engine.service import Settings

    house = await House(Settings(node_id="node-1", threads=1, max_active=slots)).start()
    keys: dict[str, list[int]] = {}
    for key, takes_s, department in runs:
        nap = step("nap", "wait", params={"duration": "20s" if parks else "1s"})
        work = step("a", "effect", ["nap"], params={"takes_s": takes_s})
        concurrency = {"limit": limit, "key": "${{ inputs.key }}"}
        text = workflow(nap, work, department=department, concurrency=concurrency, timeout="1h")
        keys.setdefault(key, []).append((await house.control.submit(Submission(text, {"key": key}))).workflow_id)
    for _ in range(crashes):
        await asyncio.sleep(9)
        await house.restart()
    for ids in keys.values():
        for one in ids:
            assert (await house.ended(one)).state is RunState.COMPLETED
        assert most_at_once(intervals(house, ids)) <= limit
    await asyncio.sleep(40)
    assert house.leaks() == {}
    assert house.engine.scheduler.holders._by_key == {}
    await house.engine.stop()
