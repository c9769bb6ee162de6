"""The CLI's side of the HTTP API: requests, errors as the server means them, and the stream of events."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
import msgspec

from knhk.domain import errors
from knhk.domain.errors import InvalidParameter, KnhkError, Problem, ServerUnreachable

_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 60.0
_SILENCE_S: Final = 60.0  # the server says that it is still there every 15 s
_RECONNECTS: Final = 5
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


class Client:
    """One server. Every method raises what the server answered as the error that it was there, or ServerUnreachable."""

    def __init__(self, server: str, option: str = "--server") -> None:
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidParameter(
                f"{option}: {server!r} is not a URL such as http://127.0.0.1:8080",
                hint="See --server and KNHK_SERVER, --operations and KNHK_OPERATIONS.",
            )
        self._server = server.rstrip("/")
        self._http = httpx.Client(
            base_url=self._server,
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
            # A proxy of the environment cannot reach this machine's own addresses.
            trust_env=parts.hostname not in _LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | None] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
    ) -> dict[str, Any]:
        """The decoded answer. `wait_s` is how long the server was asked to wait before it answers."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            response = self._http.request(
                method,
                path,
                params=given,
                content=body,
                headers=dict(headers or {}),
                timeout=httpx.Timeout(_ANSWER_S + wait_s, connect=_CONNECT_S),
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise error_of(response.status_code, response.content, response.headers.get("retry-after"))
        return self._decoded(response)

    def events(self, workflow_id: str, from_seq: int = 0) -> Iterator[dict[str, Any]]:
        """The receipts of a workflow as they are committed, until its end. A broken connection is made again."""
        seq, failures = from_seq, 0
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(seq - 1)} if seq else {})
            try:
                with self._http.stream(
                    "GET",
                    f"/workflows/{workflow_id}/events",
                    headers=headers,
                    timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
                ) as response:
                    if response.is_error:
                        raise error_of(response.status_code, response.read(), response.headers.get("retry-after"))
                    for receipt in _receipts(response.iter_lines()):
                        seq, failures = receipt["seq"] + 1, 0
                        yield receipt
                return
            except httpx.HTTPError as error:
                failures += 1
                if failures > _RECONNECTS:
                    raise self._unreachable(error) from error
                _pause(failures)

    def _decoded(self, response: httpx.Response) -> dict[str, Any]:
        try:
            found = msgspec.json.decode(response.content, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ServerUnreachable(
                f"{self._server} answered with something that is not KNHK's: {response.headers.get('content-type')}",
                hint="Is this the URL of the API? Name it with --server or KNHK_SERVER.",
            ) from error
        return found

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        return ServerUnreachable(f"{self._server}: {error or type(error).__name__}")


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
    kind = _by_code().get(problem.code) or _BY_STATUS.get(status, KnhkError)
    found = []
    for one in problem.problems:
        try:
            found.append(msgspec.convert(one, Problem))
        except msgspec.ValidationError:
            found.append(Problem(str(one)))
    seconds = float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
    message = problem.detail or problem.title or f"the server answered with status {status}"
    return kind(message, problems=found, retry_after_s=seconds, hint=problem.hint)


def _by_code() -> dict[str, type[KnhkError]]:
    """Every error by its code."""
    found: dict[str, type[KnhkError]] = {}
    ahead: list[type[KnhkError]] = [KnhkError]
    while ahead:
        kind = ahead.pop()
        found[kind.code] = kind
        ahead += kind.__subclasses__()
    return found


def _receipts(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The data of server-sent events (WHATWG HTML, 9.2.6); comments and other fields are passed over."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield msgspec.json.decode("\n".join(data), type=dict[str, Any])
            data.clear()


def _pause(failures: int) -> None:
    import time

    time.sleep(min(0.2 * 2**failures, 3.0))
