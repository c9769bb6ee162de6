"""Going back to a step, forks, and decisions about many runs."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knhk.domain.errors import IllegalTransition, InvalidParameter
from knhk.domain.run import RunState, StepState
from knhk.engine import bulk
from knhk.engine.control import Filter
from tests.simulation.clock import in_virtual_time
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House


def chain(**spec: Any) -> bytes:
    first = step("a", "effect", params={"gives": "${{ inputs.n }}"})
    second = step("b", "effect", ["a"], params={"gives": "${{ steps.a.output * 10 }}"})
    third = step("c", "effect", ["b"], params={"gives": "${{ steps.b.output + inputs.n }}"})
    return workflow(first, second, third, step("side", "effect"), timeout="10h", **spec)


async def test_a_run_goes_back_to_a_step_and_runs_all_after_it_again(house: House) -> None:
    accepted = await house.submit(chain(), wait_s=60, n=2)
    name = accepted.workflow_id
    assert await house.control.time_machine.retry_from(name, "b", actor="anna") == ("b", "c")
    run = await house.ended(name)
    assert run.state is RunState.COMPLETED
    assert [len(house.effects.of(one)) for one in ("a", "b", "c", "side")] == [1, 2, 2, 1]
    assert (await house.control.results(name))[1] == {"c": 22, "side": None}
    await house.restart()
    await house.control.time_machine.retry_from(name, "c", actor="anna")
    assert (await house.ended(name)).attempts[run.plan.index_of["c"]] == 3
    await house.engine.projector.reached(house.engine.committer.height)
    rows, _ = await house.control.listing(Filter(), before=None, limit=5)
    assert [(row["state"], row["steps_completed"]) for row in rows] == [("completed", 4)]
    assert (await house.verify()).valid
    assert house.leaks() == {}


async def test_what_cannot_go_back_says_why(house: House) -> None:
    once = workflow(step("a", "effect", semantics="at_most_once"), step("b", "effect", ["a"], params={"takes_s": 9.0}))
    accepted = await house.submit(once)
    machine = house.control.time_machine
    with pytest.raises(IllegalTransition, match="only an ended run"):
        await machine.retry_from(accepted.workflow_id, "b", actor="anna")
    await house.ended(accepted.workflow_id)
    with pytest.raises(IllegalTransition, match="at_most_once"):
        await machine.retry_from(accepted.workflow_id, "a", actor="anna")
    with pytest.raises(InvalidParameter, match="no step 'x'"):
        await machine.retry_from(accepted.workflow_id, "x", actor="anna")
    await house.control.erase(accepted.workflow_id, actor="anna")
    with pytest.raises(IllegalTransition, match="erased"):
        await machine.fork(accepted.workflow_id, "b", inputs={}, actor="anna")


async def test_a_fork_keeps_what_came_before_and_says_where_it_is_from(house: House) -> None:
    accepted = await house.submit(chain(), wait_s=60, n=2)
    fork = house.control.time_machine.fork
    forked = await fork(accepted.workflow_id, "c", inputs={"n": 5}, actor="anna", idempotency_key="k")
    run = await house.ended(forked.workflow_id)
    assert run.state is RunState.COMPLETED
    assert (await house.control.results(forked.workflow_id))[1] == {"c": 25, "side": None}
    assert [len(house.effects.of(one)) for one in ("a", "b", "c", "side")] == [1, 1, 2, 1]
    assert house.kinds(forked.workflow_id).count("step.reused") == 3
    reused = next(one for one in house.events(forked.workflow_id) if one.step == "b")
    source = house.events(accepted.workflow_id)[reused.detail.seq]  # type: ignore[union-attr]
    assert (source.step, source.output_digest) == ("b", reused.output_digest)
    shown = await house.control.status(forked.workflow_id)
    assert shown["forked_from"] == {"workflow_id": f"wf-{accepted.workflow_id}", "step": "c"}
    await house.restart()
    fork = house.control.time_machine.fork
    again = await fork(accepted.workflow_id, "c", inputs={"n": 5}, actor="anna", idempotency_key="k")
    assert (again.workflow_id, again.replayed) == (forked.workflow_id, True)
    assert (await house.verify()).valid


async def test_a_fork_goes_on_after_a_crash(house: House) -> None:
    slow = step("b", "effect", ["a"], params={"takes_s": 30.0, "gives": "${{ steps.a.output }}"})
    accepted = await house.submit(workflow(step("a", "effect", params={"gives": 1}), slow, timeout="1h"))
    await asyncio.sleep(1)
    forked = await house.control.time_machine.fork(accepted.workflow_id, "b", inputs={}, actor="anna")
    await asyncio.sleep(1)
    await house.restart()
    assert (await house.ended(forked.workflow_id)).state is RunState.COMPLETED
    assert (await house.control.results(forked.workflow_id))[1] == {"b": 1}
    assert len(house.effects.of("a")) == 1


async def test_a_bulk_does_what_its_dry_run_says(house: House) -> None:
    slow = workflow(step("nap", "wait", params={"duration": "1h"}), timeout="9h", department="x")
    ids = [(await house.submit(slow)).workflow_id for _ in range(5)]
    other = (await house.submit(workflow(step("nap", "wait", params={"duration": "1h"}), timeout="9h"))).workflow_id
    await house.engine.projector.reached(house.engine.committer.height)

    async def act(dry_run: bool) -> bulk.Outcome:
        wanted = Filter(department="x")
        do = lambda one: house.control.cancel(one, actor="anna")  # noqa: E731
        return await bulk.apply_to_all(
            "cancel", wanted, house.control.listing, do, before=None, limit=100, dry_run=dry_run
        )

    found = await act(True)
    assert sorted(found.matched) == sorted(f"wf-{one}" for one in ids)
    assert found.done == 0
    await house.control.cancel(ids[0], actor="ben")
    done = await act(False)
    assert (done.done, [one.code for one in done.failed]) == (4, ["KNHK-4002"])
    assert (await house.fold(other)).state is RunState.RUNNING
    with pytest.raises(InvalidParameter, match="needs a filter"):
        await bulk.apply_to_all(
            "cancel", Filter(), house.control.listing, house.control.receipts, before=None, limit=9, dry_run=True
        )


_GRAPH = st.lists(st.sets(st.integers(0, 6), max_size=3), min_size=1, max_size=7)


@settings(max_examples=25, deadline=None)
@given(graph=_GRAPH, start=st.integers(0, 6), crash=st.booleans())
def test_going_back_reruns_exactly_the_step_and_all_after_it(graph: list[set[int]], start: int, crash: bool) -> None:
    in_virtual_time(lambda: _life(graph, start % len(graph), crash))


async def _life(graph: list[set[int]], start: int, crash: bool) -> None:
    house = await House().start()
    before = [sorted(one for one in edges if one < index) for index, edges in enumerate(graph)]
    steps = [step(f"s{at}", "effect", [f"s{one}" for one in edges]) for at, edges in enumerate(before)]
    accepted = await house.submit(workflow(*steps), wait_s=60)
    after = {start}
    for index, edges in enumerate(before):
        if after & set(edges):
            after.add(index)
    await house.control.time_machine.retry_from(accepted.workflow_id, f"s{start}", actor="t")
    if crash:
        await house.restart()
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.COMPLETED
    assert set(run.steps) == {StepState.COMPLETED}
    counts = [len(house.effects.of(f"s{at}")) for at in range(len(graph))]
    assert all(count >= 2 if at in after else count == 1 for at, count in enumerate(counts))
    forked = await house.control.time_machine.fork(accepted.workflow_id, f"s{start}", inputs={}, actor="t")
    assert (await house.ended(forked.workflow_id)).state is RunState.COMPLETED
    assert house.kinds(forked.workflow_id).count("step.reused") == len(graph) - len(after)
    await house.engine.stop()
