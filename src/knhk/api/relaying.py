"""Requests and answers on their way from one process to another, as ASGI has them."""

from collections.abc import AsyncIterator
from typing import Any, Final

import httpx

from knhk.api.submit import Answer
from knhk.domain.errors import PartitionMoving

OWN_HEADERS: Final = {
    b"connection",
    b"keep-alive",
    b"transfer-encoding",
    b"te",
    b"upgrade",
    b"host",
    b"content-length",
}
"""What is about one connection."""


def target_of(scope: Any) -> str:
    path, query = str(scope["raw_path"].decode()), scope["query_string"].decode()
    return f"{path}?{query}" if query else path


def kept_headers(response: httpx.Response) -> list[tuple[bytes, bytes]]:
    dropped = OWN_HEADERS | {b"content-encoding", b"date", b"server"}
    return [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in dropped]


async def relay(response: httpx.Response, send: Any) -> None:
    """Pass an answer on as it comes: a stream of events has no end."""
    try:
        await send({"type": "http.response.start", "status": response.status_code, "headers": kept_headers(response)})
        async for part in response.aiter_bytes():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        await response.aclose()


async def send_answer(send: Any, answer: Answer) -> None:
    status, headers, raw = answer
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


async def read_body(receive: Any, most_bytes: int) -> bytes:
    """The request's body; what is longer than is allowed is left to the owner to refuse."""
    parts: list[bytes] = []
    while sum(map(len, parts)) <= most_bytes:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            break
    return b"".join(parts)


async def parts_of(receive: Any) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise PartitionMoving("the client went away")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def replay(body: bytes, receive: Any) -> Any:
    """A receive channel that gives a body that was read already, once."""
    given = False

    async def replaying() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying
