"""When an attempt began and what it waited for before: time in the queue, in commits and at work are told apart."""

from typing import Any

import pytest

from knhk.diagnostics.timing import critical_path, timing_of
from knhk.domain.event import StepCompleted
from knhk.engine.loader import decode_receipts
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

S = 1_000_000_000
CHAIN = workflow(
    step("a", "effect", params={"takes_s": 2.0}),
    step("b", "effect", ["a"], params={"takes_s": 3.0}),
    step("c", "process", ["b"]),
)
WIDE = workflow(step("a", "effect", params={"takes_s": 2.0}), step("b", "effect", params={"takes_s": 3.0}))


def completed(house: House, workflow_id: int) -> dict[str, tuple[StepCompleted, int]]:
    return {
        one.step: (one.detail, one.at_ns) for one in house.events(workflow_id) if isinstance(one.detail, StepCompleted)
    }


async def by_kind(house: House, workflow_id: int) -> dict[str, float]:
    """Seconds on the critical path."""
    receipts = decode_receipts(await house.control.receipts(workflow_id), workflow_id)
    shown = await house.control.status(workflow_id)
    sums: dict[str, float] = {}
    for segment in critical_path(timing_of(receipts, shown["steps"], 0)):
        sums[segment.kind] = sums.get(segment.kind, 0.0) + segment.took_ns / S
    return sums


async def test_an_attempt_begins_once_what_it_depends_on_is_durable(build: Any) -> None:
    house = await build(latency_s=0.25)
    workflow_id = (await house.submit(CHAIN)).workflow_id
    await house.ended(workflow_id)
    times = completed(house, workflow_id)
    assert times["b"][0].started_at_ns - times["a"][1] >= 0.25 * S
    assert times["b"][1] - times["b"][0].started_at_ns == pytest.approx(3 * S, rel=0.01)
    assert times["b"][0].queued_ns == 0
    sums = await by_kind(house, workflow_id)
    assert sums["execution"] == pytest.approx(5, rel=0.01)
    assert 0.5 <= sums["commit"] < 2


async def test_an_attempt_that_waits_for_a_place_says_how_long(build: Any) -> None:
    house = await build(max_concurrent_steps=1)
    workflow_id = (await house.submit(WIDE)).workflow_id
    await house.ended(workflow_id)
    times = completed(house, workflow_id)
    assert times["a"][0].queued_ns == 0
    assert times["b"][0].queued_ns == pytest.approx(2 * S, rel=0.01)
    assert times["b"][1] - times["b"][0].started_at_ns == pytest.approx(3 * S, rel=0.01)
    sums = await by_kind(house, workflow_id)
    assert (sums["queue"], sums["execution"]) == (pytest.approx(2, rel=0.01), pytest.approx(3, rel=0.01))
