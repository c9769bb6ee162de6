"""Registered definitions: versions that never change, runs that keep theirs, and puts in the middle of a crash."""

import asyncio
from typing import Any

import pytest

from knhk.domain.errors import DefinitionConflict, DefinitionNotFound, InvalidParameter, KnhkError, WorkflowNotFound
from knhk.engine.control import Accepted, Filter, Submission
from knhk.engine.definitions import Put
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House
from tests.unit.engine.conftest import Faults


def text(amount: int = 1, name: str = "orders") -> bytes:
    return workflow(step("price", params={"output": amount}), name=name)


async def put(house: House, descriptor: bytes, label: str = "") -> Put:
    return await house.engine.definitions.put(descriptor, label=label, actor="anna")


async def run(house: House, version: str = "", key: str = "", name: str = "orders", **inputs: Any) -> Accepted:
    submission = Submission(inputs=inputs, idempotency_key=key, definition=name, version=version)
    return await house.control.submit(submission, wait_s=60)


async def test_versions_count_up_and_are_found_by_number_label_and_digest(house: House) -> None:
    first, second = await put(house, text(1), "1.0.0"), await put(house, text(2), "spring")
    assert [first.version.number, second.version.number] == [1, 2]
    digest = first.version.digest.hex()
    for wanted, price in [("", 2), ("latest", 2), ("1", 1), ("v1", 1), ("1.0.0", 1), ("spring", 2), (digest[:12], 1)]:
        assert (await run(house, wanted)).results == {"price": price}
    for unknown in ("3", "0", "autumn", "f" * 64):
        with pytest.raises(DefinitionNotFound, match="1 to 2"):
            await run(house, unknown)


async def test_the_same_text_is_the_same_version(house: House) -> None:
    first = await put(house, text(1), "1.0.0")
    again = await put(house, text(1))
    assert (again.version, again.created, first.created) == (first.version, False, True)
    assert len(house.receipts(first.definition.record_id)) == 1


async def test_a_version_never_changes(house: House) -> None:
    await put(house, text(1), "1.0.0")
    with pytest.raises(DefinitionConflict, match="very text"):
        await put(house, text(1), "1.0.1")
    with pytest.raises(DefinitionConflict, match=r"1\.0\.0"):
        await put(house, text(2), "1.0.0")
    assert len((await house.engine.definitions.get("orders")).versions) == 1


@pytest.mark.parametrize("label", ["latest", "7", "v7", "0123456789abcdef", "a b", "-x", "x" * 65])
async def test_a_label_that_could_mean_something_else_is_refused(house: House, label: str) -> None:
    with pytest.raises(InvalidParameter, match="label"):
        await put(house, text(), label)


async def test_a_name_that_no_path_can_hold_is_refused(house: House) -> None:
    with pytest.raises(InvalidParameter, match="cannot name a definition"):
        await put(house, text(name="a/b"))


async def test_a_run_keeps_the_version_with_which_it_began(house: House) -> None:
    nap = step("a", "wait", params={"duration": "1h"})
    slow = workflow(nap, step("b", after=["a"], params={"output": "old"}), timeout="2h")
    await put(house, slow)
    submission = Submission(definition="orders")
    accepted = await house.control.submit(submission)
    await put(house, text(2))
    await house.restart()
    ended = await house.ended(accepted.workflow_id)
    assert ended.submitted is not None
    assert (ended.submitted.definition, ended.submitted.version) == ("orders", 1)
    assert (await house.control.results(accepted.workflow_id))[1] == {"b": "old"}
    shown = await house.control.status(accepted.workflow_id)
    assert shown["definition"] == {"name": "orders", "version": 1}


async def test_what_was_acknowledged_is_there_after_a_crash(house: House) -> None:
    for amount in range(1, 6):
        assert (await put(house, text(amount))).version.number == amount
        await house.restart()
    assert (await run(house)).results == {"price": 5}
    assert (await house.verify()).valid
    rows, following = await house.engine.definitions.listing(after=None, limit=10)
    assert [(row.name, row.version) for row in rows] == [("orders", 5)]
    assert following is None
    assert not house.leaks()


async def test_a_put_whose_commit_fails_is_not_lost_and_forks_no_chain(house: House, faults: Faults) -> None:
    await put(house, text(1))
    faults.when = {"before", "reopen"}
    with pytest.raises(KnhkError):
        await put(house, text(2))
    with pytest.raises(KnhkError):
        await put(house, text(3))
    faults.when = set()
    await asyncio.sleep(10)
    assert (await put(house, text(2))).version.number == 2
    assert (await put(house, text(3))).version.number == 3
    assert (await house.verify()).valid


async def test_puts_at_the_same_time_take_turns(build: Any) -> None:
    house = await build(latency_s=0.01)
    done = await asyncio.gather(*[put(house, text(number % 4)) for number in range(12)])
    assert sorted({one.version.number for one in done}) == [1, 2, 3, 4]
    assert sum(one.created for one in done) == 4
    assert (await house.verify()).valid


async def test_a_retired_definition_starts_nothing_until_it_is_put_again(house: House) -> None:
    await put(house, text(1))
    accepted = await run(house, key="k")
    await house.engine.definitions.retire("orders", actor="anna", reason="over")
    with pytest.raises(DefinitionNotFound, match="retired"):
        await run(house)
    assert (await run(house, key="k")).workflow_id == accepted.workflow_id
    await house.restart()
    with pytest.raises(DefinitionNotFound, match="retired"):
        await run(house)
    revived = await put(house, text(1))
    assert (revived.version.number, revived.created) == (2, True)
    assert (await run(house)).results == {"price": 1}


async def test_one_key_is_one_run_even_if_a_version_comes_between(build: Any) -> None:
    house = await build(latency_s=0.01)
    await put(house, text(1))
    answers = await asyncio.gather(*[run(house, key="k") for _ in range(8)], put(house, text(2)))
    assert len({answer.workflow_id for answer in answers[:-1]}) == 1
    assert (await run(house, key="k")).workflow_id == answers[0].workflow_id


async def test_a_record_is_no_workflow(house: House) -> None:
    done = await put(house, text(1))
    with pytest.raises(WorkflowNotFound, match="definition"):
        await house.control.status(done.definition.record_id)
    assert (await house.control.receipts(done.definition.record_id))[0].receipt().kind == "definition.put"
    found, _ = await house.control.listing(Filter(), before=None, limit=10)
    assert found == []


async def test_names_are_listed_in_order_and_by_pages(house: House) -> None:
    names = ["b", "a", "ab", "a.b", "B", "a_", "a-1"]
    for name in names:
        await put(house, text(name=name))
    found: list[str] = []
    after: str | None = None
    while True:
        rows, after = await house.engine.definitions.listing(after=after, limit=2)
        found += [row.name for row in rows]
        if after is None:
            break
    assert found == sorted(names)


async def test_versions_are_compared(house: House) -> None:
    await put(house, workflow(step("a"), step("b", params={"x": 1})))
    await put(house, workflow(step("b", params={"x": 2}), step("c")))
    found = await house.engine.definitions.compare("orders", "1", "2")
    assert found["steps"] == {"added": ["c"], "removed": ["a"], "changed": ["b"]}
    assert not found["identical"]
    assert "orders version 1" in found["diff"]
