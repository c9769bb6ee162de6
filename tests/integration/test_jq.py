"""jq in its own processes: values, what a program cannot reach, and programs that do not end."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from knhk.actions.jq import JqPool
from knhk.domain.errors import InvalidExpression


@pytest.fixture
async def jq() -> AsyncIterator[JqPool]:
    pool = JqPool(processes=2, timeout_s=5.0, memory_bytes=256 << 20)
    yield pool
    await pool.close()


@pytest.mark.parametrize(
    ("source", "given", "variables", "value"),
    [
        (".a", {"a": 1}, {}, 1),
        ("${ .a }", {"a": 1}, {}, 1),
        (".a + $b", {"a": 1}, {"b": 2}, 3),
        ("1, 2", None, {}, [1, 2]),
        ("empty", None, {}, None),
        (".a # a comment", {"a": [True, None, "ü"]}, {}, [True, None, "ü"]),
        ("def double: . * 2; .a | double", {"a": 4}, {}, 8),
        ('"Hello \\(.name)!"', {"name": "Ada"}, {}, "Hello Ada!"),
        ("$item.x", None, {"item": {"x": 7}, "index": 0}, 7),
    ],
)
async def test_a_program_has_a_value(
    jq: JqPool, source: str, given: Any, variables: dict[str, Any], value: Any
) -> None:
    assert await jq.evaluate(source, given, variables) == value


async def test_a_template_is_filled(jq: JqPool) -> None:
    template = {"a": "${ .x + 1 }", "b": [".x", "$(ls)", "${HOME", 5, None], "c": {"d": "  ${ $y }"}}
    filled = await jq.fill(template, {"x": 1}, {"y": [2]})
    assert filled == {"a": 2, "b": [".x", "$(ls)", "${HOME", 5, None], "c": {"d": [2]}}


@pytest.mark.parametrize(
    "source",
    [
        ".a +",
        "1) | (2",
        "$missing",
        "nothing_of_this_name",
        'error("on purpose")',
        'import "a" as a; 1',
        'include "/etc/passwd"; 1',
        "input",
        "{} | keys | .[0] | explode",
    ],
)
async def test_a_program_that_fails_says_so_and_harms_no_other(jq: JqPool, source: str) -> None:
    with pytest.raises(InvalidExpression) as caught:
        await jq.evaluate(source, {})
    assert source[:20] in caught.value.message
    assert await jq.evaluate(".a", {"a": 1}) == 1


async def test_no_program_sees_the_environment(jq: JqPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNHK_PLANTED_SECRET", "hunter2")
    assert os.environ["KNHK_PLANTED_SECRET"]
    assert await jq.evaluate("env", None) == {}
    assert await jq.evaluate("$ENV", None) == {}


@pytest.mark.parametrize(
    "source", ["last(range(1e15))", "def f: f; f", "[range(1e15)] | length", "reduce range(1e15) as $i ([]; . + [$i])"]
)
async def test_a_program_that_does_not_end_is_ended(source: str) -> None:
    pool = JqPool(processes=1, timeout_s=0.5, memory_bytes=256 << 20)
    try:
        with pytest.raises(InvalidExpression):
            await pool.evaluate(source, None)
        assert await pool.evaluate("1 + 1", None) == 2
    finally:
        await pool.close()


async def test_a_program_that_takes_all_memory_is_ended(jq: JqPool) -> None:
    with pytest.raises(InvalidExpression, match="its process ended"):
        await jq.evaluate('"a" * 1e9 | length', None)
    assert await jq.evaluate("1 + 1", None) == 2


async def test_many_ask_at_once_and_each_gets_its_own(jq: JqPool) -> None:
    found = await asyncio.gather(*(jq.evaluate(". * 2", number) for number in range(200)))
    assert found == [number * 2 for number in range(200)]


async def test_one_who_is_cancelled_leaves_no_answer_to_the_next(jq: JqPool) -> None:
    slow = [asyncio.create_task(jq.evaluate("[range(3000000)] | length", None)) for _ in range(2)]
    await asyncio.sleep(0.2)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert [await jq.evaluate(".", number) for number in range(5)] == list(range(5))


def test_a_pool_that_was_closed_is_used_again_in_another_loop_and_keeps_its_process() -> None:
    pool = JqPool(processes=1)

    async def twice() -> set[int]:
        processes = set()
        for number in range(3):
            assert await pool.evaluate(". + 1", number) == number + 1
            processes |= {process.pid for process in pool._idle}
        await pool.close()
        assert not pool._idle
        return processes

    first, second = asyncio.run(twice()), asyncio.run(twice())
    assert (len(first), len(second)) == (1, 1)
