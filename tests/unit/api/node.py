"""An API over an engine of its own, whose store is in memory."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from litestar import Litestar

from knhk.actions.catalogue import catalogue
from knhk.api.actions import action_handlers
from knhk.api.app import create_app
from knhk.api.submit import SubmitRoute
from knhk.api.workers import worker_handlers
from knhk.config import Actions
from knhk.engine.service import Engine, Settings
from knhk.persistence.memory import Faults, MemoryStore
from knhk.platform.clock import SystemClock
from knhk.platform.ids import SnowflakeIds
from knhk.security.signing import Ed25519Signer

MOST_BODY_BYTES = 20_000


class Node:
    """The engine, its application and a client of it."""

    def __init__(self, faults: Faults | None = None, **limits: int) -> None:
        registry = catalogue(Actions())
        clock, store = SystemClock(), MemoryStore(faults=faults)
        self.engine = Engine(
            Settings(node_id="node-1", threads=2, **limits),
            registry,
            append=store,
            journal=store,
            projections=store,
            storage=store,
            signer=Ed25519Signer(Ed25519PrivateKey.generate(), clock.now_ns()),
            clock=clock,
            ids=SnowflakeIds(clock),
            rng=random.Random(7),
        )
        route = SubmitRoute(self.engine.control, MOST_BODY_BYTES)
        self.application: Litestar = create_app(
            self.engine.control,
            route,
            version="5.0.0",
            further=[
                *action_handlers(registry),
                *worker_handlers(self.engine.workers, max_wait_ns=10**10, max_batch=100),
            ],
        )
        transport: Any = httpx.ASGITransport(self.application, raise_app_exceptions=False)  # type: ignore[arg-type]
        self.http = httpx.AsyncClient(transport=transport, base_url="http://node")

    async def submit(self, descriptor: str, wait: str | None = None, **headers: str) -> dict[str, Any]:
        query = {} if wait is None else {"wait": wait}
        answer = await self.http.post("/workflows", content=descriptor, params=query, headers=headers)
        assert answer.status_code in (200, 202), answer.text
        return dict(answer.json())

    async def id_of(self, descriptor: str, wait: str | None = None) -> str:
        return str((await self.submit(descriptor, wait))["workflow_id"])

    async def listed(self, **query: str | int) -> list[dict[str, Any]]:
        """The first page of a list, once all that is committed is in the lists."""
        await self.projected()
        answer = await self.http.get("/workflows", params=query)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["workflows"])

    async def projected(self) -> None:
        """Wait until the lists show all that is committed."""
        async with asyncio.timeout(5):
            while self.engine.projector.cursor < self.engine.committer.height:
                await asyncio.sleep(0.002)


@asynccontextmanager
async def running(faults: Faults | None = None, **limits: int) -> AsyncIterator[Node]:
    node = Node(faults, **limits)
    await node.engine.start()
    try:
        yield node
    finally:
        await node.http.aclose()
        await node.engine.stop()


def problem_of(answer: httpx.Response, status: int, code: str = "") -> dict[str, Any]:
    """The problem details of an answer, checked for what all of them have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "retryable"} <= problem.keys()
    assert problem["status"] == status
    assert problem.get("code", "") == code
    if problem["retryable"]:
        assert int(answer.headers["retry-after"]) >= 1
    return problem
