"""Asking nodes that do not answer: over real sockets, with places as a test says that they are."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from knhk.api.places import Places
from knhk.api.router import Router
from knhk.domain.errors import PartitionMoving

ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{"taken":"b"}'


class Two:
    """Two nodes: `a` reads what it is asked and never answers, as one that was stopped; `b` answers."""

    partitions, wait_s, shared = 1, 5.0, True

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.owner, self.there = "a", {"a", "b"}
        self.urls: dict[str, str] = {}
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        for name in ("a", "b"):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = name) -> None:
                await reader.readuntil(b"\r\n\r\n")
                self.asked.append(name)
                if name == "b":
                    writer.write(ANSWER)
                else:
                    await reader.read()  # until the router gives up
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            self._servers.append(server)
            self.urls[name] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def local(self, _partition: int) -> None:
        return None

    def remote(self, _partition: int) -> str | None:
        return self.urls[self.owner] if self.owner else None

    def absent(self, _partition: int) -> str:
        return ""

    def is_there(self, url: str) -> bool:
        return any(self.urls[name] == url for name in self.there)

    async def leaves(self, name: str, to: str) -> None:
        """Once the node has been asked, it leaves; another owns the partition a little later."""
        while name not in self.asked:
            await asyncio.sleep(0.01)
        self.there.discard(name)
        self.owner = ""
        await asyncio.sleep(0.3)
        self.owner = to

    def close(self) -> None:
        for server in self._servers:
            server.close()


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    made = Two()
    await made.start()
    yield made
    made.close()


async def nobody(_control: Any) -> None:
    raise AssertionError("no partition is here")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("method", "repeatable"), [("GET", False), ("POST", True)])
async def test_what_can_be_repeated_goes_to_the_next_owner(two: Two, method: str, repeatable: bool) -> None:
    router = Router(cast(Places, two))
    leaving = asyncio.create_task(two.leaves("a", to="b"))
    assert await router.call(0, nobody, method, "/x", repeatable=repeatable) == {"taken": "b"}
    assert two.asked == ["a", "b"]
    await leaving
    await router.close()


@pytest.mark.timeout(60)
async def test_of_anything_else_it_is_said_that_nobody_knows_what_became_of_it(two: Two) -> None:
    router = Router(cast(Places, two))
    leaving = asyncio.create_task(two.leaves("a", to="b"))
    with pytest.raises(PartitionMoving, match="went away before it answered") as raised:
        await router.call(0, nobody, "POST", "/x")
    assert raised.value.retryable
    assert two.asked == ["a"]
    await leaving
    await router.close()


@pytest.mark.timeout(60)
async def test_a_process_that_is_about_to_end_waits_for_no_owner(two: Two) -> None:
    router, two.owner, two.wait_s = Router(cast(Places, two)), "", 1e9
    waiting = asyncio.create_task(router.owner(0, forwarded=False))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    router.hurry()
    with pytest.raises(PartitionMoving):
        await waiting
    await router.close()
