"""POST /workflows without the toll of ASGI: the parser hands the body to the submit route, the answer is one write.

uvicorn's protocol does everything else, for this route too: keep-alive, flow control, shutdown, and requests that are
out of the ordinary (pipelined, `Expect: 100-continue`, upgrades), which take the usual way through the application
and meet the same SubmitRoute there. It leans on names inside uvicorn, which is pinned; tests hold both ways to the same
answers.
"""

from collections.abc import Awaitable, Coroutine
from functools import partial
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from knhk.api.submit import PATH, Answer, SubmitRoute, internal_error, too_long
from knhk.platform.serving import CLOSE

_TARGET = PATH.encode()
_TARGET_WITH_QUERY = _TARGET + b"?"


class Exchange:
    """One submission on its way, in the place of uvicorn's RequestResponseCycle, some of whose names it shares."""

    __slots__ = ("disconnected", "headers", "keep_alive", "parts", "query", "response_complete", "size")

    def __init__(self, headers: list[tuple[bytes, bytes]], query: bytes, keep_alive: bool) -> None:
        self.headers, self.query, self.keep_alive = headers, query, keep_alive
        self.disconnected = self.response_complete = False
        self.parts: list[bytes] = []
        self.size = 0

    @property
    def message_event(self) -> "Exchange":
        """Where uvicorn would wake a reader."""
        return self

    def set(self) -> None:
        """Nobody waits: the body is complete before anything begins."""

    def add(self, part: bytes, most_bytes: int) -> None:
        """Take a part of the body; what is too long is only counted."""
        self.size += len(part)
        if self.size <= most_bytes:
            self.parts.append(part)
        else:
            self.parts.clear()


class SubmitProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with a way of its own for submissions. Made for one route by `protocol_for`."""

    route: ClassVar[SubmitRoute]

    def on_headers_complete(self) -> None:
        if not self._is_ordinary_submission():
            super().on_headers_complete()
            return
        query = self.url[len(_TARGET_WITH_QUERY) :]
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        self._take(Exchange(self.headers, query, keep_alive))

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange()
        if exchange is None:
            super().on_body(body)
        else:
            exchange.add(body, self.route.max_body_bytes)

    def on_message_complete(self) -> None:
        exchange = self._exchange()
        if exchange is None:
            super().on_message_complete()
            return
        route = self.route
        if exchange.size > route.max_body_bytes:
            self.loop.call_soon(self._answer, exchange, too_long(route.max_body_bytes))
            return
        body = exchange.parts[0] if len(exchange.parts) == 1 else b"".join(exchange.parts)
        try:
            pending = route.begin(exchange.headers, exchange.query, body, partial(self._answer, exchange))
        except Exception as error:
            self.loop.call_soon(self._answer, exchange, self._failed(error))
            return
        if pending is not None:
            self._start(self._respond(exchange, pending))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _take(self, exchange: Any) -> None:
        self.cycle = exchange

    def _exchange(self) -> Exchange | None:
        cycle: Any = self.cycle
        return cycle if type(cycle) is Exchange and not cycle.response_complete else None

    def _is_ordinary_submission(self) -> bool:
        url = self.url
        return (
            (url == _TARGET or url.startswith(_TARGET_WITH_QUERY))
            and self.parser.get_method() == b"POST"
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and (self.cycle is None or self.cycle.response_complete)
        )

    async def _respond(self, exchange: Exchange, pending: Awaitable[Answer]) -> None:
        try:
            answer = await pending
        except Exception as error:
            answer = self._failed(error)
        self._answer(exchange, answer)

    def _failed(self, error: Exception) -> Answer:
        self.logger.error("Exception in the submit route", exc_info=error)
        return internal_error(error)

    def _answer(self, exchange: Exchange, answer: Answer) -> None:
        if self.flow.write_paused and not exchange.disconnected:
            self._start(self._write_later(exchange, answer))
        else:
            self._write(exchange, answer)

    async def _write_later(self, exchange: Exchange, answer: Answer) -> None:
        await self.flow.drain()
        self._write(exchange, answer)

    def _write(self, exchange: Exchange, answer: Answer) -> None:
        if exchange.disconnected:
            return
        keep_alive = exchange.keep_alive and CLOSE not in self.server_state.default_headers
        self.transport.write(_rendered(answer, keep_alive))
        exchange.response_complete = True
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()


def protocol_for(route: SubmitRoute) -> type[SubmitProtocol]:
    """The protocol class that serves this route's submissions."""
    return type("SubmitProtocolOfRoute", (SubmitProtocol,), {"route": route})


def _rendered(answer: Answer, keep_alive: bool) -> bytes:
    status, headers, raw = answer
    lines = [b"%b: %b\r\n" % header for header in headers]
    close = b"" if keep_alive else b"connection: close\r\n"
    return b"%bcontent-length: %d\r\n%b%b\r\n%b" % (STATUS_LINE[status], len(raw), b"".join(lines), close, raw)
