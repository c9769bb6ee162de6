"""Idempotency keys: one key is one run, whatever happens to the requests."""

import asyncio
from typing import Any

import pytest

from knhk.domain.errors import IdempotencyConflict, InvalidDescriptor, InvalidParameter, StorageUnavailable
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House
from tests.unit.engine.conftest import Faults

ORDER = workflow(step("a", "effect", params={"takes_s": 10.0}))


def runs(house: House) -> list[int]:
    return list(house.store._state.receipts)


async def test_the_same_request_gets_the_first_answer_again(house: House) -> None:
    first = await house.submit(ORDER, key="k")
    again = await house.submit(ORDER, key="k")
    assert (again.workflow_id, again.replayed, first.replayed) == (first.workflow_id, True, False)
    done = await house.submit(ORDER, key="k", wait_s=60)
    assert done.state == "completed"
    assert done.results == {"a": None}
    assert len(runs(house)) == 1


async def test_another_request_with_the_key_is_refused(house: House) -> None:
    await house.submit(ORDER, key="k")
    with pytest.raises(IdempotencyConflict):
        await house.submit(workflow(step("b")), key="k")
    with pytest.raises(IdempotencyConflict):
        await house.submit(ORDER, key="k", n=1)
    assert len(runs(house)) == 1


async def test_requests_at_the_same_time_are_one_run(build: Any) -> None:
    house = await build(latency_s=0.01)
    answers = await asyncio.gather(*[house.submit(ORDER, key="k") for _ in range(20)])
    assert len({answer.workflow_id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert len(runs(house)) == 1


async def test_the_key_outlives_a_crash(house: House) -> None:
    first = await house.submit(ORDER, key="k")
    await house.restart()
    again = await house.submit(ORDER, key="k")
    assert again.workflow_id == first.workflow_id


async def test_a_request_that_was_not_valid_leaves_the_key_free(house: House) -> None:
    with pytest.raises(InvalidDescriptor):
        await house.submit(b"nonsense", key="k")
    await house.submit(ORDER, key="k")
    assert len(runs(house)) == 1


async def test_a_client_that_hangs_up_and_asks_again_gets_the_same_run(build: Any) -> None:
    house = await build(latency_s=1.0)
    request = asyncio.create_task(house.submit(ORDER, key="k"))
    while not house.control._claims:
        await asyncio.sleep(0.001)
    request.cancel()
    again = await house.submit(ORDER, key="k")
    assert again.replayed
    assert runs(house) == [again.workflow_id]


@pytest.mark.parametrize("stage", ["before", "after"])
async def test_a_request_whose_outcome_is_open_cannot_be_made_twice(house: House, faults: Faults, stage: str) -> None:
    faults.when = {stage, "reopen"}
    answers = await asyncio.gather(*[house.submit(ORDER, key="k") for _ in range(3)], return_exceptions=True)
    assert all(isinstance(answer, StorageUnavailable) for answer in answers)
    faults.when.clear()
    await asyncio.sleep(5)
    again = await house.submit(ORDER, key="k")
    assert again.replayed
    assert runs(house) == [again.workflow_id]


async def test_waiting_with_a_known_key_reaches_the_end_of_a_parked_run(house: House) -> None:
    parked = workflow(step("a", "wait", params={"duration": "1h", "output": 1}), timeout="2h")
    await house.submit(parked, key="k")
    assert not house.engine.scheduler.active
    answer = await house.submit(parked, key="k", wait_s=7200)
    assert (answer.state, answer.results) == ("completed", {"a": 1})


async def test_a_key_that_is_too_long_is_refused(house: House) -> None:
    with pytest.raises(InvalidParameter):
        await house.submit(ORDER, key="k" * 256)
