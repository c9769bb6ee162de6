"""The operations server of several processes: it speaks for all, or has one of them answer.

/health, /ready, /metrics, /checkpoint, /drill, /shutdown   for all together
/processes                                                  which there are; PUT changes how many
/processes/N/...                                            what process N says under the rest of the path
PUT /log-level                                              for all
everything else                                             as process 0 says, which has partition 0
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from knhk.domain.errors import InvalidParameter, KnhkError
from knhk.domain.problems import MEDIA_TYPE, problem_of, retry_after
from knhk.observability import logs
from knhk.ops import log_level
from knhk.ops.app import create_app as create_own_app
from knhk.ops.bridge import body_of
from knhk.ops.operations import Operations

_OWN: Final = frozenset({"/health", "/health/detailed", "/ready", "/metrics", "/checkpoint", "/drill", "/shutdown"})
_ONE: Final = re.compile(r"/processes/([0-9]{1,3})(/.*)")
_PROCESSES: Final = "/processes"

Headers = Sequence[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]


class Processes(Operations, Protocol):
    """The processes of a server as its operator sees them."""

    def numbers(self) -> Sequence[int]:
        """Those that answer."""
        ...

    def states(self) -> list[dict[str, Any]]:
        """All that are wanted, and how they are."""
        ...

    async def resize(self, count: int) -> None:
        """Have another number of processes. Raises Refused, Conflict."""
        ...

    async def ask(self, process: int, method: str, target: str, headers: Headers = (), body: bytes = b"") -> Answer:
        """What a process answers on its own operations port. Raises NotFound, Unavailable."""
        ...


def create_app(processes: Processes) -> Any:
    """The application."""
    own = create_own_app(processes)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] in _OWN:
            await own(scope, receive, send)
            return
        try:
            body = await body_of(receive)
            if body is not None:
                await _send(send, await _answer(processes, scope, body))
        except KnhkError as error:
            await _send(send, _refusal(error))

    return application


async def _answer(processes: Processes, scope: Any, body: bytes) -> Answer:
    path, method, headers = scope["path"], scope["method"], scope["headers"]
    query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
    if path == _PROCESSES and method in ("GET", "PUT"):
        if method == "PUT":
            await processes.resize(_count_in(body))
        return 200, [(b"content-type", b"application/json")], msgspec.json.encode({"processes": processes.states()})
    if (one := _ONE.fullmatch(path)) is not None:
        return await processes.ask(int(one[1]), method, one[2] + query, headers, body)
    if path == log_level.PATH and method == "PUT":
        return await _for_all(processes, path, headers, body)
    return await processes.ask(0, method, path + query, headers, body)


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a change of the number of processes."""

    count: int


def _count_in(body: bytes) -> int:
    try:
        return msgspec.json.decode(body, type=Wanted).count
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"{_PROCESSES}: {error}", hint='Send {"count": 2}.') from None


async def _for_all(processes: Processes, path: str, headers: Headers, body: bytes) -> Answer:
    """Change the log level of every process, and of this one; one that begins later has that of the configuration."""
    answers = await asyncio.gather(*(processes.ask(one, "PUT", path, headers, body) for one in processes.numbers()))
    if all(status == 200 for status, _, _ in answers):
        logs.set_level(msgspec.json.decode(body, type=log_level.Level).level)
    return max(answers, key=lambda answer: answer[0])


def _refusal(error: KnhkError) -> Answer:
    status, problem = problem_of(error)
    seconds = retry_after(error)
    headers = [(b"content-type", MEDIA_TYPE.encode())]
    headers += [] if seconds is None else [(b"retry-after", seconds.encode())]
    return status, headers, msgspec.json.encode(problem, enc_hook=str)


async def _send(send: Any, answer: Answer) -> None:
    status, headers, raw = answer
    length = (b"content-length", b"%d" % len(raw))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": raw})
