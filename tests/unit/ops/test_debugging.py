"""The /debug routes: who may use them, one long one at a time, bounds."""

import asyncio
import threading
from typing import Any

import httpx
import pytest

from knhk.ops.debugging import create_debug_app


class Process:
    """Implements ops.debugging.Debugging."""

    def __init__(self) -> None:
        self.remote = False
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.gate.set()

    def tasks(self) -> dict[str, Any]:
        return {"threads": [], "tasks": [], "count": 0, "blocked": None}

    def logs(self, limit: int) -> list[str]:
        return ["one", "two", "three"][-limit:]

    def configuration(self) -> list[dict[str, str]]:
        return [{"key": "auth.client_secret", "value": "********", "source": "default"}]

    def resources(self) -> dict[str, Any]:
        return {"findings": []}

    def profile(self, seconds: float, stop: threading.Event) -> dict[str, Any]:
        self.begun.set()
        self.gate.wait(20)
        return {"seconds": seconds, "stopped": stop.is_set()}

    def heap(self) -> dict[str, Any]:
        return {"types": []}

    def allocations(self, seconds: float, stop: threading.Event) -> dict[str, Any]:
        return {"seconds": seconds}

    def collect(self) -> dict[str, Any]:
        raise RuntimeError("password=hunter2")


def client(process: Process, host: str = "127.0.0.1") -> httpx.AsyncClient:
    transport: Any = httpx.ASGITransport(create_debug_app(process), client=(host, 1), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:9090")


async def test_looks_are_answered() -> None:
    http = client(Process())
    assert (await http.get("/debug/logs", params={"limit": 2})).json() == {"lines": ["two", "three"]}
    for path in ("tasks", "config", "resources"):
        assert (await http.get(f"/debug/{path}")).status_code == 200
    assert (await http.post("/debug/memory", params={"seconds": 3})).json() == {"seconds": 3.0}


@pytest.mark.parametrize("host", ["10.1.2.3", "fe80::1", "testclient", ""])
async def test_other_machines_may_not_unless_the_configuration_says_so(host: str) -> None:
    process = Process()
    refused = await client(process, host).get("/debug/tasks")
    assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
    assert "diagnostics.remote" in refused.json()["hint"]
    process.remote = True
    assert (await client(process, host).get("/debug/tasks")).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"x-forwarded-for": "10.0.0.1"}, {"forwarded": "for=10.0.0.1"}, {"host": "evil.example:9090"}]
)
async def test_a_proxy_or_a_name_that_was_made_to_point_here_is_not_this_machine(headers: dict[str, str]) -> None:
    assert (await client(Process()).get("/debug/config", headers=headers)).status_code == 403
    assert (await client(Process(), "127.0.0.9").get("/debug/config")).status_code == 200


async def test_a_page_of_another_site_may_not_start_anything() -> None:
    refused = await client(Process()).post("/debug/heap", headers={"origin": "https://evil.example"})
    assert refused.status_code == 403


async def test_one_profile_at_a_time() -> None:
    process = Process()
    process.gate.clear()
    http = client(process)
    first = asyncio.create_task(http.post("/debug/profile", params={"seconds": 1}))
    await asyncio.to_thread(process.begun.wait, 20)
    for path in ("profile", "memory", "heap", "gc"):
        assert (await http.post(f"/debug/{path}")).status_code == 409
    assert (await http.get("/debug/tasks")).status_code == 200
    process.gate.set()
    assert (await first).json() == {"seconds": 1.0, "stopped": False}
    assert (await http.post("/debug/heap")).status_code == 200


@pytest.mark.parametrize("seconds", ["0", "-1", "301", "nan", "x"])
async def test_durations_are_bounded(seconds: str) -> None:
    answer = await client(Process()).post("/debug/profile", params={"seconds": seconds})
    assert answer.status_code == 400


async def test_a_fault_frees_the_turn_and_tells_no_secret() -> None:
    http = client(Process())
    for _ in range(2):
        answer = await http.post("/debug/gc")
        assert answer.status_code == 500
        assert "hunter2" not in answer.text
