"""Between the thread that serves the operations port and the loop that the engine lives on.

    operations port ── thread's loop ──┬── /debug/...       answered by the thread itself
                                       ├── everything else  answered on the engine's loop
                                       └── while that is blocked: health, readiness and metrics by the thread,
                                           the rest is refused with the reason

A request is handed over with its body, and its answer comes back whole.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Final

import msgspec

from knhk.domain.errors import PayloadTooLarge, Unavailable
from knhk.domain.problems import MEDIA_TYPE, problem_of, retry_after

MOST_BODY_BYTES: Final = 64 << 10
DEBUG: Final = "/debug/"
ANSWERED_ALWAYS: Final = frozenset({"/health", "/health/detailed", "/ready", "/metrics"})
_PATIENCE_S: Final = 1.0

Message = dict[str, Any]
Application = Callable[[Any, Any, Any], Awaitable[None]]


class Bridge:
    """An ASGI application for the thread. `blocked` says why the engine's loop does not turn, None if it does."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        application: Application,
        *,
        fallback: Application,
        debug: Application,
        blocked: Callable[[], str | None],
    ) -> None:
        self._loop, self._application, self._fallback, self._debug = loop, application, fallback, debug
        self._blocked = blocked

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].startswith(DEBUG):
            return await self._debug(scope, receive, send)
        try:
            body = await body_of(receive)
        except PayloadTooLarge as error:
            return await _refuse(error, send)
        if body is None:
            return None
        began: Future[None] = Future()
        answer = asyncio.run_coroutine_threadsafe(_answer(self._application, scope, body, began), self._loop)
        if not await self._begins(began) and answer.cancel():
            return await self._instead(scope, body, send)
        for message in await asyncio.wrap_future(answer):
            await send(message)
        return None

    async def _begins(self, began: "Future[None]") -> bool:
        """Whether the engine's loop takes the request up."""
        patience_s = 0.0 if self._blocked() is not None else _PATIENCE_S
        await asyncio.wait([asyncio.wrap_future(began)], timeout=patience_s)
        return began.done()

    async def _instead(self, scope: Any, body: bytes, send: Any) -> None:
        if scope["path"] in ANSWERED_ALWAYS:
            for message in await _answer(self._fallback, scope, body):
                await send(message)
            return
        why = self._blocked() or "the event loop does not answer"
        await _refuse(Unavailable(why, hint="See `knhk debug tasks`, or /debug/tasks, for what it is doing."), send)


async def body_of(receive: Any) -> bytes | None:
    """The request's body, None if the client went away. Raises PayloadTooLarge: no route needs so much."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BODY_BYTES:
            raise PayloadTooLarge(f"the body is longer than {MOST_BODY_BYTES} bytes; no route here needs one")
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(
    application: Application, scope: Any, body: bytes, began: "Future[None] | None" = None
) -> list[Message]:
    """What an application sends for a request."""
    if began is not None:
        began.set_result(None)
    sent: list[Message] = []
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if given:
            return given.pop()
        await asyncio.Event().wait()  # the client is taken to stay
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        sent.append(message)

    await application(dict(scope), receive, send)
    return sent


async def _refuse(error: PayloadTooLarge | Unavailable, send: Any) -> None:
    status, problem = problem_of(error)
    raw = msgspec.json.encode(problem, enc_hook=str)
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(raw)).encode())]
    seconds = retry_after(error)
    headers.append((b"connection", b"close") if seconds is None else (b"retry-after", seconds.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})
