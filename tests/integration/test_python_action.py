"""The `python` action: functions in processes of their own, which die, hang, eat memory and are replaced."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from knhk.actions.python import PythonPool, action
from knhk.actions.registry import Failed, Outcome, RetryLater, Succeeded
from knhk.config import PythonOptions
from tests.integration.test_shell_action import gone, invocation, pid_in

JOBS = "tests.integration.python_jobs"


@pytest.fixture
async def pool() -> AsyncIterator[PythonPool]:
    made = PythonPool(PythonOptions(callables=(f"{JOBS}:*",), processes=2, max_memory_bytes=512 << 20))
    yield made
    await made.aclose()


async def call(pool: PythonPool, name: str, timeout: str = "60s", **args: Any) -> Outcome:
    return await pool.run(invocation(callable=f"{JOBS}:{name}", args=args, timeout=timeout))


async def test_calls_and_what_they_give(pool: PythonPool) -> None:
    first = await call(pool, "add", a=2)
    assert isinstance(first, Succeeded), first
    assert first.output["sum"] == 3
    assert await call(pool, "add", a=2) == first  # the process is used again
    assert await call(pool, "later", a=5) == Succeeded(5)
    assert await call(pool, "who") == Succeeded(["wf-1/pack", 2, {}])


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("add", {"a": "2"}, Failed("KNHK-ACTION-PARAMS", "")),
        ("add", {"c": 2}, Failed("KNHK-ACTION-PARAMS", "")),
        ("refuse", {}, Failed("SHOP-NEVER", "never")),
        ("again", {}, RetryLater("KNHK-ACTION-RETRY", "busy", 1_500_000_000)),
        ("raises", {}, RetryLater("KNHK-ACTION-ERROR", "RuntimeError: boom")),
        ("hungry", {}, RetryLater("KNHK-ACTION-ERROR", "MemoryError: ")),
        ("odd", {}, Failed("KNHK-ACTION-OUTPUT", "")),
        ("missing", {}, Failed("KNHK-PYTHON-CALLABLE", "")),
        ("imported", {}, Failed("KNHK-PYTHON-CALLABLE", "")),
        ("pid_of_parent", {}, Failed("KNHK-PYTHON-CALLABLE", "")),
        ("Thing", {}, Failed("KNHK-PYTHON-CALLABLE", "")),
        ("_private", {}, Failed("KNHK-ACTION-PARAMS", "")),
        ("add.__globals__", {}, Failed("KNHK-ACTION-PARAMS", "")),
    ],
)
async def test_what_goes_wrong(pool: PythonPool, name: str, args: dict[str, Any], expected: Any) -> None:
    outcome = await call(pool, name, **args)
    assert isinstance(outcome, type(expected)), outcome
    assert outcome.code == expected.code, outcome
    assert not expected.message or outcome == expected


@pytest.mark.parametrize(
    ("name", "args", "code", "text"),
    [
        ("die", {}, "KNHK-PYTHON-DIED", "signal 9"),
        ("leave", {}, "KNHK-PYTHON-DIED", "exit code 3"),
        ("spin", {"timeout": "3s"}, "KNHK-PYTHON-TIMEOUT", "3s"),
    ],
)
async def test_a_process_that_is_lost_is_replaced(
    pool: PythonPool, name: str, args: dict[str, Any], code: str, text: str
) -> None:
    for _ in range(2):
        outcome = await call(pool, name, **args)
        assert isinstance(outcome, RetryLater), outcome
        assert outcome.code == code, outcome
        assert text in outcome.message
        assert isinstance(await call(pool, "add", a=1), Succeeded)


async def test_a_cancelled_call_and_what_it_started_are_killed(pool: PythonPool, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    task = asyncio.create_task(call(pool, "sleep", seconds=300, pid_file=str(pid)))
    number = await asyncio.to_thread(pid_in, pid)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(gone, number)
    assert isinstance(await call(pool, "add", a=1), Succeeded)


async def test_calls_run_at_the_same_time_and_not_more_than_allowed(pool: PythonPool) -> None:
    outcomes = await asyncio.gather(*(call(pool, "add", a=number) for number in range(6)))
    assert [outcome.output["sum"] for outcome in outcomes] == list(range(1, 7))  # type: ignore[union-attr]
    assert len({outcome.output["pid"] for outcome in outcomes}) <= 2  # type: ignore[union-attr]


async def test_only_what_is_listed_may_be_called() -> None:
    pool = PythonPool(PythonOptions(callables=("json:dumps", f"{JOBS}:add")))
    assert "names no function" in action(PythonOptions()).traits.disabled
    for place in (f"{JOBS}:die", "os:system", "json:loads"):
        outcome = await pool.run(invocation(callable=place))
        assert isinstance(outcome, Failed), place
        assert outcome.code == "KNHK-ACTION-NOT-ALLOWED", place
    await pool.aclose()
