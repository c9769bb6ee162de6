"""What a server answers: problem details as the errors that they were there, and server-sent events as receipts."""

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from knhk.domain import errors
from knhk.domain.errors import InvalidParameter, KnhkError, Problem

CONNECT_S: Final = 5.0
ANSWER_S: Final = 60.0
SILENCE_S: Final = 60.0  # the server says that it is still there every 15 s
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_BY_STATUS: Final[dict[int, type[KnhkError]]] = {
    400: errors.InvalidInput,
    403: errors.Refused,
    404: errors.NotFound,
    405: errors.InvalidInput,
    409: errors.Conflict,
    413: errors.PayloadTooLarge,
    422: errors.InvalidInput,
    429: errors.Overloaded,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unavailable,
}


def checked_url(server: str, name: str = "server") -> tuple[str, bool]:
    """The URL of a server, and whether proxies of the environment may be used: none reaches this machine itself.

    Raises InvalidParameter if it is no URL.
    """
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidParameter(
            f"{name}: {server!r} is not a URL such as http://127.0.0.1:8080",
            hint="See --server and KNHK_SERVER, --operations and KNHK_OPERATIONS.",
        )
    return server.rstrip("/"), parts.hostname not in _LOOPBACK


class _ProblemDetails(msgspec.Struct):
    """RFC 9457, as the server writes it. What is not of this shape is left out."""

    title: str = ""
    detail: str = ""
    code: str = ""
    hint: str | None = None
    problems: list[Any] = []


def error_of(status: int, raw: bytes, retry_after: str | None = None) -> KnhkError:
    """The error that an answer stands for, with the server's words."""
    try:
        problem = msgspec.json.decode(raw, type=_ProblemDetails)
    except msgspec.DecodeError:
        problem = _ProblemDetails(detail=f"the server answered with status {status}")
    kind = errors.by_code().get(problem.code) or _BY_STATUS.get(status, KnhkError)
    found = []
    for one in problem.problems:
        try:
            found.append(msgspec.convert(one, Problem))
        except msgspec.ValidationError:
            found.append(Problem(str(one)))
    seconds = float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
    message = problem.detail or problem.title or f"the server answered with status {status}"
    return kind(message, problems=found, retry_after_s=seconds, hint=problem.hint)


def receipts_in(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The data of server-sent events (WHATWG HTML, 9.2.6); comments and other fields are passed over."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield msgspec.json.decode("\n".join(data), type=dict[str, Any])
            data.clear()
