"""The `python` action: functions in processes of their own, which die, hang, eat memory and are replaced."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from knhk.actions.blob_access import AreaAccess
from knhk.actions.python import PythonPool, action
from knhk.actions.registry import Failed, Outcome, RetryLater, Succeeded
from knhk.config import PythonOptions
from knhk.domain.blob import JSON, JSON_LINES, OCTETS, TEXT, BlobReference
from knhk.domain.errors import BlobNotFound, PayloadTooLarge, Unsupported
from knhk.persistence.blob_area import BlobArea
from tests.integration.test_shell_action import gone, invocation, pid_in

JOBS = "tests.integration.python_jobs"


MiB = 1 << 20


@pytest.fixture
def blobs(tmp_path: Path) -> BlobArea:
    area = BlobArea(tmp_path / "blobs", inline_bytes=1000, data_bytes=20_000, max_bytes=32 * MiB, min_free_bytes=0)
    area.open()
    return area


@pytest.fixture
async def pool(blobs: BlobArea) -> AsyncIterator[PythonPool]:
    made = PythonPool(PythonOptions(callables=(f"{JOBS}:*",), processes=2, max_memory_bytes=512 << 20), blobs)
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


def content(blobs: BlobArea, output: Any) -> tuple[bytes, str]:
    reference = BlobReference.of(output)
    assert reference is not None, output
    raw = b"".join(blobs.pieces(reference.digest))
    assert len(raw) == reference.size
    return raw, reference.media_type


async def output_of(pool: PythonPool, name: str, blob: str = "auto", **args: Any) -> Any:
    outcome = await pool.run(invocation(callable=f"{JOBS}:{name}", args=args, timeout="60s", blob=blob))
    assert isinstance(outcome, Succeeded), outcome
    return outcome.output


async def test_what_is_large_becomes_a_blob(pool: PythonPool, blobs: BlobArea) -> None:
    assert await output_of(pool, "letters", count=1000, kind="bytes") == base64.b64encode(b"x" * 1000).decode()
    assert content(blobs, await output_of(pool, "letters", count=1001, kind="bytes")) == (b"x" * 1001, OCTETS)
    assert content(blobs, await output_of(pool, "letters", count=1001, kind="outcome")) == (b"x" * 1001, OCTETS)
    assert await output_of(pool, "letters", count=1000, kind="text") == "ä" * 500
    assert content(blobs, await output_of(pool, "letters", count=1002, kind="text")) == ("ä".encode() * 501, TEXT)
    assert await output_of(pool, "letters", count=18_000, kind="data") == ["x"] * 9_000
    raw, kind = content(blobs, await output_of(pool, "letters", count=40_000, kind="data"))
    assert (json.loads(raw), kind) == (["x"] * 20_000, JSON)
    assert await output_of(pool, "letters", "never", count=40_000, kind="data") == ["x"] * 20_000
    assert content(blobs, await output_of(pool, "letters", "always", count=2, kind="data")) == (b'["x"]', JSON)


async def test_an_iterator_becomes_a_blob_as_it_goes(pool: PythonPool, blobs: BlobArea) -> None:
    assert content(blobs, await output_of(pool, "numbers", count=2)) == (b'{"number":0}\n{"number":1}\n', JSON_LINES)
    assert content(blobs, await output_of(pool, "numbers", count=0)) == (b"", OCTETS)
    assert content(blobs, await output_of(pool, "stream", megabytes=3)) == (b"\n" * 3 * MiB, OCTETS)
    assert await call(pool, "breaks_off") == Failed("SHOP-NEVER", "no more")
    refused = await call(pool, "stream", megabytes=33)
    assert isinstance(refused, Failed), refused
    assert refused.code == PayloadTooLarge.code
    died = await call(pool, "stream", megabytes=2, dies=True)
    assert isinstance(died, RetryLater), died
    assert not list(blobs.path.glob("incoming-*")), "nothing of an unfinished blob is left"


async def test_blobs_as_arguments(pool: PythonPool, blobs: BlobArea) -> None:
    text = AreaAccess(blobs).put([b"abc" * MiB, b"xyz"], "text/plain")
    output = await output_of(pool, "upper", text=text.to_dict())
    assert (output["head"], output["tail"]) == ("abc", "yz")
    assert content(blobs, output["upper"]) == (b"ABC" * MiB + b"XYZ", "text/x-upper")
    missing = await call(pool, "missing_blob")
    assert isinstance(missing, Failed), missing
    assert missing.code == BlobNotFound.code


async def test_where_there_are_no_blobs() -> None:
    pool = PythonPool(PythonOptions(callables=(f"{JOBS}:*",), processes=1))
    assert await output_of(pool, "letters", count=40_000, kind="data") == ["x"] * 20_000
    refused = await call(pool, "missing_blob")
    assert isinstance(refused, Failed), refused
    assert refused.code == Unsupported.code
    await pool.aclose()


async def test_only_what_is_listed_may_be_called() -> None:
    pool = PythonPool(PythonOptions(callables=("json:dumps", f"{JOBS}:add")))
    assert "names no function" in action(PythonOptions()).traits.disabled
    for place in (f"{JOBS}:die", "os:system", "json:loads"):
        outcome = await pool.run(invocation(callable=place))
        assert isinstance(outcome, Failed), place
        assert outcome.code == "KNHK-ACTION-NOT-ALLOWED", place
    await pool.aclose()
