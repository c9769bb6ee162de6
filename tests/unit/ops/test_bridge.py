"""The bridge between the operations port's thread and the engine's loop."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from knhk.ops.app import create_app
from knhk.ops.bridge import Bridge
from tests.unit.ops.doubles import Node


class Other:
    """A loop of its own in a thread, where the bridge runs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def begin(self, coroutine: Any) -> "asyncio.Future[Any]":
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
async def other() -> AsyncIterator[Other]:
    thread = Other()
    yield thread
    thread.close()


def client(node: Node, fallback: Node, blocked: Any = lambda: None) -> httpx.AsyncClient:
    async def debug(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b"debug"})

    bridge: Any = Bridge(
        asyncio.get_running_loop(), create_app(node), fallback=create_app(fallback), debug=debug, blocked=blocked
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(bridge), base_url="http://node:9090")


async def test_requests_are_answered_on_the_engine_s_loop(other: Other) -> None:
    node = Node()
    http = client(node, Node())
    assert (await other.begin(http.get("/health"))).json() == {"status": "healthy"}
    assert (await other.begin(http.post("/checkpoint"))).json()["height"] == 41
    assert (await other.begin(http.post("/shutdown", content=b"ignored"))).status_code == 202
    assert node.shutdowns == 1
    assert (await other.begin(http.get("/nothing"))).status_code == 404
    assert (await other.begin(http.get("/debug/anything"))).status_code == 299


@pytest.mark.parametrize("known", ["the event loop has been blocked", None])
async def test_while_the_loop_is_blocked_the_thread_answers_for_it(other: Other, known: str | None) -> None:
    node, fallback = Node(), Node()
    fallback.closed = "the event loop is blocked"
    http = client(node, fallback, lambda: known)
    requests = [other.begin(one) for one in (http.get("/ready"), http.get("/debug/x"), http.post("/shutdown"))]
    time.sleep(1.5)  # the engine's loop is this test's
    ready, debug, shutdown = await asyncio.gather(*requests)
    assert (ready.status_code, ready.json()["detail"]) == (503, "the event loop is blocked")
    assert debug.status_code == 299
    assert (shutdown.status_code, shutdown.json()["retryable"]) == (503, True)
    assert known is None or known in shutdown.json()["detail"]
    await asyncio.sleep(0.05)
    assert node.shutdowns == 0  # what was refused does not happen later


async def test_bodies_are_bounded_before_they_are_handed_over(other: Other) -> None:
    node = Node()
    answer = await other.begin(client(node, Node()).post("/shutdown", content=b"x" * (65 << 10)))
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert node.shutdowns == 0
