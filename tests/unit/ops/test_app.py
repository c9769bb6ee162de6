"""The operations routes: shapes of the operator's guide, statuses, and problems."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from knhk.domain import errors
from knhk.ops.app import create_app
from knhk.ops.operations import ROOMS, Operations
from tests.unit.ops.doubles import Node


@pytest.fixture
async def node() -> Node:
    return Node()


@pytest.fixture
async def http(node: Node) -> AsyncIterator[httpx.AsyncClient]:
    operations: Operations = node
    transport: Any = httpx.ASGITransport(create_app(operations))
    async with httpx.AsyncClient(transport=transport, base_url="http://node:9090") as client:
        yield client


def is_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert {"type", "title", "detail", "retryable"} <= set(problem)
    return problem


async def test_a_healthy_node(http: httpx.AsyncClient) -> None:
    response = await http.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "healthy"})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"


async def test_detailed_health_has_exactly_the_shape_of_the_guide(http: httpx.AsyncClient) -> None:
    response = await http.get("/health/detailed")
    assert response.status_code == 200
    assert response.json() == {
        "status": "healthy",
        "uptime_seconds": 864000,
        "version": "5.0.0",
        "checks": {
            "persistence": "ok",
            "observability": "ok",
            "monitoring": "absent",
            "recovery": "ok",
            "scaling": "absent",
            "learning": "absent",
            "cost_tracking": "absent",
        },
    }
    assert tuple(response.json()["checks"]) == ROOMS


@pytest.mark.parametrize(
    ("room", "text", "status"),
    [("persistence", "The disk is full: 3 MiB", "unhealthy"), ("learning", "no model", "degraded")],
)
async def test_what_a_restart_cannot_mend_does_not_fail_the_liveness_probe(
    http: httpx.AsyncClient, node: Node, room: str, text: str, status: str
) -> None:
    node.checks[room] = text
    response = await http.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": status})
    detailed = (await http.get("/health/detailed")).json()
    assert (detailed["status"], detailed["checks"][room]) == (status, text)


async def test_a_halted_node_fails_both_probes(http: httpx.AsyncClient, node: Node) -> None:
    node.halted = "the partition has another owner"
    assert (await http.get("/health")).status_code == 503
    detailed = await http.get("/health/detailed")
    assert detailed.status_code == 503
    assert detailed.json()["checks"]["persistence"] == "halted: the partition has another owner"
    assert "another owner" in is_problem(await http.get("/ready"), 503)["detail"]


async def test_readiness_says_why_not(http: httpx.AsyncClient, node: Node) -> None:
    assert (await http.get("/ready")).json() == {"status": "ready"}
    node.closed = "draining"
    response = await http.get("/ready")
    problem = is_problem(response, 503)
    assert problem["detail"] == "draining"
    assert problem["retryable"]
    assert response.headers["retry-after"] == "1"


async def test_metrics_in_both_formats(http: httpx.AsyncClient) -> None:
    plain = await http.get("/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE knhk_workflow_duration_seconds histogram" in plain.text
    opened = await http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert opened.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert opened.text.endswith("# EOF\n")


async def test_checkpoint_tells_where_and_how_high(http: httpx.AsyncClient) -> None:
    response = await http.post("/checkpoint")
    assert response.status_code == 201
    assert response.json() == {"path": "/var/lib/knhk/checkpoints/1", "height": 41}


async def test_one_checkpoint_at_a_time(http: httpx.AsyncClient, node: Node) -> None:
    node.gate.clear()
    first = asyncio.create_task(http.post("/checkpoint"))
    await node.writing.wait()
    is_problem(await http.post("/checkpoint"), 409)
    node.gate.set()
    assert (await first).status_code == 201
    assert (await http.post("/checkpoint")).status_code == 201


@pytest.mark.parametrize(
    ("error", "status"),
    [(errors.Conflict("there"), 409), (errors.DiskFull("full"), 503), (errors.JournalCorrupt("x"), 500)],
)
async def test_what_goes_wrong_is_a_problem_with_a_code(
    http: httpx.AsyncClient, node: Node, error: errors.KnhkError, status: int
) -> None:
    node.failure = error
    assert is_problem(await http.post("/checkpoint"), status)["code"] == error.code
    node.failure = None
    assert (await http.post("/checkpoint")).status_code == 201


async def test_shutdown_can_be_asked_for_twice(http: httpx.AsyncClient, node: Node) -> None:
    for _ in range(2):
        response = await http.post("/shutdown", content=b"ignored")
        assert (response.status_code, response.json()) == (202, {"status": "draining"})
    assert node.shutdowns == 2


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}])
async def test_a_page_of_another_site_cannot_stop_the_server(
    http: httpx.AsyncClient, node: Node, headers: dict[str, str]
) -> None:
    is_problem(await http.post("/shutdown", headers=headers), 403)
    assert node.shutdowns == 0
    assert (await http.get("/health", headers=headers)).status_code == 200


async def test_a_page_of_this_server_can(http: httpx.AsyncClient, node: Node) -> None:
    headers = {"origin": "http://node:9090", "sec-fetch-site": "same-origin"}
    assert (await http.post("/shutdown", headers=headers)).status_code == 202


async def test_bodies_are_bounded(http: httpx.AsyncClient, node: Node) -> None:
    response = await http.post("/shutdown", content=b"x" * (65 << 10))
    assert is_problem(response, 413)["code"] == "KNHK-1006"
    assert response.headers["connection"] == "close"
    assert node.shutdowns == 0


@pytest.mark.parametrize("path", ["/", "/nothing", "/health/nothing", "/schema", "/openapi.json", "/%00", "/metrics/x"])
async def test_unknown_routes_are_problems(http: httpx.AsyncClient, path: str) -> None:
    is_problem(await http.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/shutdown"), ("GET", "/checkpoint"), ("POST", "/health"), ("DELETE", "/metrics"), ("PUT", "/shutdown")],
)
async def test_only_the_documented_methods(http: httpx.AsyncClient, node: Node, method: str, path: str) -> None:
    response = await http.request(method, path)
    is_problem(response, 405)
    assert response.headers["allow"]
    assert node.shutdowns == 0


async def test_a_fault_of_ours_does_not_tell_its_message(http: httpx.AsyncClient, node: Node) -> None:
    node.failure = RuntimeError("password=hunter2")
    problem = is_problem(await http.get("/health"), 500)
    assert "RuntimeError" in problem["detail"]
    assert "hunter2" not in str(problem)
