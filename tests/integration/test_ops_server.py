"""The operations server on a real socket: what clients send must not stop it from answering the next one."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from knhk.ops.app import create_app
from knhk.platform.serving import Serving, listen
from tests.unit.ops.doubles import Node


class Server:
    """The server, and its port."""

    def __init__(self) -> None:
        self.node = Node()
        self.socket: socket.socket = listen("127.0.0.1", 0, "observability.metrics_port")
        self.port: int = self.socket.getsockname()[1]
        self._serving = Serving(create_app(self.node), self.socket)

    async def __aenter__(self) -> "Server":
        await self._serving.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._serving.stop()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False)

    async def healthy(self) -> bool:
        async with self.client() as http:
            return (await http.get("/health")).json() == {"status": "healthy"}

    async def send(self, raw: bytes) -> bytes:
        """What the server answers to these bytes before it closes, or nothing."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(raw)
            await writer.drain()
            writer.write_eof()
            return await asyncio.wait_for(reader.read(), 5)
        except (ConnectionError, OSError):
            return b""
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server() as running:
        yield running


async def test_every_route_over_one_connection(server: Server) -> None:
    async with server.client() as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/health/detailed")).json()["version"] == "5.0.0"
        assert (await http.get("/ready")).status_code == 200
        scraped = await http.get("/metrics")
        names = {family.name for family in text_string_to_metric_families(scraped.text)}
        assert {"knhk_workflow_errors", "knhk_workflow_duration_seconds"} <= names
        assert (await http.post("/checkpoint")).status_code == 201
        assert (await http.post("/shutdown")).status_code == 202
        assert (await http.get("/nothing")).headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /shutdown HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /shutdown HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: \xff\r\nAccept: \xff\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text; version=\xff\r\n\r\n",
    ],
    ids=range(10),
)
async def test_garbage_does_not_stop_it(server: Server, raw: bytes) -> None:
    await server.send(raw)
    assert await server.healthy()


async def test_a_body_without_end_is_not_collected(server: Server) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    request = b"POST /checkpoint HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 64
    await server.send(request)
    assert await server.healthy()


async def test_random_requests_do_not_stop_it(server: Server) -> None:
    rng = random.Random(9090)
    prefixes = (
        b"",
        b"GET ",
        b"POST /shutdown HTTP/1.1\r\n",
        b"POST /checkpoint HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: ",
    )
    for _ in range(300):
        await server.send(rng.choice(prefixes) + rng.randbytes(rng.randrange(400)))
    assert await server.healthy()


async def test_many_scrapes_at_once(server: Server) -> None:
    async with server.client() as http:
        answers = await asyncio.gather(*(http.get("/metrics") for _ in range(100)))
    assert {answer.status_code for answer in answers} == {200}
