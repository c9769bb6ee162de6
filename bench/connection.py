"""One keep-alive connection with at most one request in flight."""

import asyncio
from collections.abc import Callable
from typing import cast

from bench.http1 import ProtocolError, ResponseParser

OnAnswer = Callable[["Connection", int, bytes], None]
OnLost = Callable[[str], None]


class Connection(asyncio.Protocol):
    """Calls `on_answer(connection, status, body)` for each answer, `on_lost(why)` if the stream ends or is no HTTP."""

    def __init__(self, on_answer: OnAnswer, on_lost: OnLost) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._parser = ResponseParser()
        self._transport: asyncio.Transport | None = None
        self.began_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, began_ns: int) -> None:
        """Send a whole request; its latency counts from `began_ns`."""
        assert self._transport is not None
        self.began_ns = began_ns
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Hand on each answer that is complete."""
        try:
            answers = self._parser.feed(data)
        except ProtocolError as problem:
            self._on_lost(str(problem))
            self.close()
            return
        for status, body in answers:
            self._on_answer(self, status, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server hung up, or `close` was called."""
        if self._transport is not None:
            self._transport = None
            self._on_lost(f"the server closed a connection: {exc or 'end of stream'}")

    def close(self) -> None:
        """Hang up without a report."""
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.close()
