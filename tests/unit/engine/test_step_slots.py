"""Places for steps: fair between departments and runs, never lost whatever ends the attempts; foreach keeps order."""

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knhk.domain.errors import KnhkError
from knhk.domain.run import RunState
from knhk.engine.step_slots import StepSlots
from tests.simulation.clock import in_virtual_time
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import SETTINGS, House, Settings


def limited(most: int) -> Settings:
    return Settings(
        **{**{name: getattr(SETTINGS, name) for name in ("node_id", "threads")}, "max_concurrent_steps": most}
    )


def each(items: int, concurrency: int, department: str = "", **params: Any) -> bytes:
    """One step for each item; the items say how long it takes."""
    given = {"takes_s": "${{ item }}", "gives": "${{ index }}", **params}
    times = [float((7 * number) % 5 + 1) for number in range(items)]
    one = step("each", "effect", foreach={"in": times, "concurrency": concurrency}, params=given)
    return workflow(one, department=department, timeout="50h")


async def test_a_department_that_floods_the_server_does_not_hold_up_another(build: Any) -> None:
    house = await build(max_concurrent_steps=10)
    flood = [(await house.submit(each(100, 100, "big"))).workflow_id for _ in range(5)]
    await asyncio.sleep(5)
    began = asyncio.get_running_loop().time()
    small = await house.ended((await house.submit(each(10, 10, "small"))).workflow_id)
    assert small.state is RunState.COMPLETED
    assert asyncio.get_running_loop().time() - began < 20, "half of the places are its own as soon as they are free"
    done = Counter(effect.workflow_id for effect in house.effects.log)
    spread = [done[f"wf-{one}"] for one in flood]
    assert max(spread) - min(spread) <= 12, "the runs of the other take turns"
    for one in flood:
        await house.ended(one)
    assert house.leaks() == {}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=80), st.integers(1, 6))
def test_the_next_place_goes_to_the_department_with_the_fewest(entries: list[tuple[int, int]], places: int) -> None:
    slots: StepSlots[tuple[int, int, int]] = StepSlots()
    for number, (department, run) in enumerate(entries):
        slots.add(f"d{department}", run, (department, run, number))
    waiting, seen = Counter(f"d{one}" for one, _ in entries), []
    under_way: list[str] = []
    while slots:
        if len(under_way) == places:
            slots.left(under_way.pop(0))
        least = min(slots.running[one] for one in waiting if waiting[one])
        entry = slots.take()
        department = f"d{entry[0]}"
        assert slots.running[department] == least
        slots.running[department] += 1
        under_way.append(department)
        waiting[department] -= 1
        seen.append(entry)
    assert sorted(number for _, _, number in seen) == list(range(len(entries)))
    for key in set(entries):
        numbers = [number for department, run, number in seen if (department, run) == key]
        assert numbers == sorted(numbers), "the attempts of one run keep their order"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_places_are_never_lost_and_foreach_keeps_its_order(data: st.DataObject) -> None:
    """Cancelled, timed out, failed, killed: afterwards all places are free, and never were too many taken."""
    places, at_once = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    ends = data.draw(st.lists(st.sampled_from(["cancel", "fails", "hangs", "kill", "nothing"]), min_size=1, max_size=5))

    async def scenario() -> None:
        house = await House(limited(places)).start()
        most = Counter[str]()

        def look(invocation: Any) -> None:
            most["places"] = max(most["places"], house.engine.executor.running)
            most[invocation.workflow_id] = max(most[invocation.workflow_id], under_way(invocation.workflow_id))

        def under_way(workflow_id: str) -> int:
            return sum(f"wf-{one.live.run.workflow_id}" == workflow_id for one in attempts())

        def attempts() -> list[Any]:
            active = house.engine.scheduler.active.values()
            return [one for live in active for one in live.attempts.values() if one.index >= 0 and "[" in one.path]

        house.effects.on_effect = look
        runs = []
        for end in ends:
            more = {"fails": {"fails": "${{ index == 3 }}"}, "hangs": {"hangs": "${{ index == 2 }}"}}.get(end, {})
            text = each(8, at_once, end, **more)
            if end == "hangs":
                text = text.replace(b'"name":"each"', b'"name":"each","timeout":"7s"')
            runs.append((end, (await house.submit(text)).workflow_id))
            await asyncio.sleep(data.draw(st.sampled_from([0.0, 1.5, 4.0])))
            if end == "cancel":
                with suppress(KnhkError):
                    await house.control.cancel(runs[-1][1], actor="anna")
            if end == "kill":
                await house.restart()
        for end, one in runs:
            run = await house.ended(one)
            if end in ("nothing", "kill"):
                assert run.state is RunState.COMPLETED, run.failure
                assert (await house.control.results(one))[1] == {"each": list(range(8))}
        assert most.pop("places") <= places
        assert max(most.values()) <= at_once
        await asyncio.sleep(1)
        assert house.leaks() == {}
        await house.engine.stop()

    in_virtual_time(scenario)
