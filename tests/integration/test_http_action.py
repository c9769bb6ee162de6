"""The `http` action against a server that does what a test tells it to, byte for byte."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from email.utils import formatdate
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.actions.http import MAX_RETRY_AFTER_NS, SHARED, HttpParams, _matcher, retry_after_ns, run
from knhk.actions.http_response import Secrets
from knhk.actions.registry import Failed, Invocation, Outcome, Registry, RetryLater, Succeeded
from knhk.config import Actions
from knhk.domain.expressions import Scope

NOW = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


class Request(msgspec.Struct):
    line: str
    headers: dict[str, str]
    body: bytes


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Peer:
    """A server of one page. `handler` writes the answer; what was asked is kept in `requests`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.handler: Handler = self.says(answer())
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def says(self, *raw: bytes) -> Handler:
        """Answers one after the other, the last for ever."""
        left = list(raw)

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(left.pop(0) if len(left) > 1 else left[0])

        self.handler = handler
        return handler

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode("latin-1").strip().split("\r\n")
                headers = {name.lower(): value for name, value in (part.split(": ", 1) for part in rest)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.requests.append(Request(line, headers, body))
                await self.handler(self.requests[-1], writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    SHARED.configure(Actions())  # without the blob area of a node that was in this process


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    made = Peer()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    await Registry.load().aclose()
    server.close()
    await server.wait_closed()


async def call(url: str, traceparent: str = "", **params: Any) -> Outcome:
    given = {"url": url, **params}
    return await run(
        Invocation("wf-1", "n", "charge", 2, "wf-1/charge", given, {}, Scope({}, {}, {}), NOW, traceparent)
    )


def output(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome, Succeeded), outcome
    result: dict[str, Any] = outcome.output
    return result


def failed(outcome: Outcome, code: str) -> Failed:
    assert isinstance(outcome, Failed), outcome
    assert outcome.code == code
    return outcome


def later(outcome: Outcome, code: str) -> RetryLater:
    assert isinstance(outcome, RetryLater), outcome
    assert outcome.code == code
    return outcome


async def test_get(peer: Peer) -> None:
    peer.says(answer(body=b'{"a": [1, null]}', Content_Type="application/json; charset=utf-8", X_Up="Y"))
    result = output(await call(peer.url + "/p?x=1", query={"q": ["a b", 2], "t": True}, headers={"X-One": "1", "n": 5}))
    assert result["status"] == 200
    assert result["body"] == {"a": [1, None]}
    assert result["encoding"] == "json"
    assert result["headers"]["x-up"] == "Y"
    (request,) = peer.requests
    assert request.line == "GET /p?x=1&q=a+b&q=2&t=true HTTP/1.1"
    assert request.headers["x-one"] == "1"
    assert request.headers["n"] == "5"
    assert not {"idempotency-key", "traceparent", "cookie", "content-type"} & set(request.headers)


async def test_post_carries_the_idempotency_key_and_the_trace(peer: Peer) -> None:
    await call(peer.url, method="post", json={"a": "ü"}, traceparent="00-1-2-01")
    await call(peer.url, method="PUT", body="text", headers={"Idempotency-Key": "mine", "Content-Type": "text/csv"})
    await call(peer.url, method="DELETE", json=None)
    first, second, third = peer.requests
    assert first.line.startswith("POST / ")
    assert first.body == '{"a":"ü"}'.encode()
    assert first.headers["content-type"] == "application/json"
    assert first.headers["idempotency-key"] == "wf-1/charge"
    assert first.headers["traceparent"] == "00-1-2-01"
    assert second.body == b"text"
    assert second.headers["idempotency-key"] == "mine"
    assert second.headers["content-type"] == "text/csv"
    assert third.body == b"null"


async def test_connections_are_shared_and_cookies_are_not(peer: Peer) -> None:
    peer.says(answer(Set_Cookie="session=secret"))
    for _ in range(3):
        output(await call(peer.url))
    assert peer.connections == 1
    assert all("cookie" not in request.headers for request in peer.requests)


@pytest.mark.parametrize(
    ("raw", "encoding", "body"),
    [
        (answer(body="grüß".encode("latin-1"), Content_Type="text/plain; charset=latin-1"), "text", "grüß"),
        (answer(body="grüß".encode()), "text", "grüß"),
        (answer(body=b"\xff\x00"), "base64", "/wA="),
        (answer(body=b"x", Content_Type="text/plain; charset=nonsense"), "base64", "eA=="),
        (answer(body=b"{broken", Content_Type="application/json"), "text", "{broken"),
        (answer(body=b'"\\ud800"', Content_Type="application/json"), "text", '"\\ud800"'),
        (answer(body=b"[1]", Content_Type="application/problem+json"), "json", [1]),
        (answer(204, Content_Type="application/json"), "text", ""),
        (answer(body=gzip.compress(b"packed", mtime=0), Content_Encoding="gzip"), "text", "packed"),
        (answer(body=zlib.compress(b"packed"), Content_Encoding="deflate"), "text", "packed"),
        (answer(body=zlib.compress(b"packed", wbits=-15), Content_Encoding="deflate"), "text", "packed"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", "text", "abc"),
    ],
)
async def test_bodies(peer: Peer, raw: bytes, encoding: str, body: Any) -> None:
    peer.says(raw)
    result = output(await call(peer.url))
    assert (result["encoding"], result["body"]) == (encoding, body)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
async def test_an_answer_without_a_body(peer: Peer, method: str) -> None:
    peer.says(b"HTTP/1.1 204 X\r\ncontent-encoding: gzip\r\n\r\n")
    assert output(await call(peer.url, method=method))["body"] == ""


@pytest.mark.parametrize("status", [500, 502, 503, 599, 408, 425, 429])
async def test_what_may_succeed_later(peer: Peer, status: int) -> None:
    peer.says(answer(status, b"busy\n now", Retry_After="7"))
    outcome = later(await call(peer.url + "/path"), "KNHK-HTTP-STATUS")
    assert outcome.after_ns == 7 * SECOND
    assert outcome.message == f"GET {peer.url}/path: status {status}: busy now"


@pytest.mark.parametrize("status", [301, 400, 401, 404, 409, 422])
async def test_other_answers_are_final(peer: Peer, status: int) -> None:
    peer.says(answer(status, b"no \x07" + b"x" * 500, Location="/elsewhere"))
    outcome = failed(await call(peer.url), "KNHK-HTTP-STATUS")
    assert f"status {status}: no ?xxx" in outcome.message
    assert len(outcome.message) < 300


async def test_a_success_that_was_not_expected_is_final(peer: Peer) -> None:
    peer.says(answer(200))
    failed(await call(peer.url, expected_status=201), "KNHK-HTTP-STATUS")


@pytest.mark.parametrize(
    ("expected", "status"),
    [(404, 404), ("404", 404), (["2xx", 503], 503), ("400-404", 402), (["5xx"], 500), ("3xx", 302)],
)
async def test_expected_statuses(peer: Peer, expected: Any, status: int) -> None:
    peer.says(answer(status))
    assert output(await call(peer.url, expected_status=expected))["status"] == status


async def test_redirects_are_followed_on_request_only(peer: Peer) -> None:
    peer.says(answer(302, Location="/there"), answer(body=b"arrived"))
    assert output(await call(peer.url, follow_redirects=True))["body"] == "arrived"
    assert peer.requests[1].line == "GET /there HTTP/1.1"
    peer.says(answer(302, Location="/again"))
    assert "TooManyRedirects" in failed(await call(peer.url, follow_redirects=True), "KNHK-HTTP-REQUEST").message
    peer.says(answer(302, Location="ftp://127.0.0.1/"))
    failed(await call(peer.url, follow_redirects=True), "KNHK-HTTP-REQUEST")


async def test_nobody_listens() -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    later(await call(f"http://127.0.0.1:{port}/"), "KNHK-HTTP-CONNECTION")
    await SHARED.aclose()


async def test_a_slow_peer(peer: Peer) -> None:
    async def silent(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    peer.handler = silent
    outcome = later(await call(peer.url, timeout="50ms"), "KNHK-HTTP-TIMEOUT")
    assert "0.05 s" in outcome.message


async def test_a_peer_that_drips_cannot_pass_the_timeout(peer: Peer) -> None:
    async def drip(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    peer.handler = drip
    async with asyncio.timeout(2):
        later(await call(peer.url, timeout="150ms"), "KNHK-HTTP-TIMEOUT")


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200",
        b"this is not HTTP\r\n\r\n",
        b"",
    ],
)
async def test_an_answer_that_breaks_off(peer: Peer, raw: bytes) -> None:
    async def cut(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.close()

    peer.handler = cut
    later(await call(peer.url), "KNHK-HTTP-CONNECTION")


async def test_a_final_status_stays_final_if_its_body_breaks_off(peer: Peer) -> None:
    async def cut(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 X\r\ncontent-length: 100\r\n\r\nonly this")
        writer.close()

    peer.handler = cut
    failed(await call(peer.url), "KNHK-HTTP-STATUS")


async def test_a_huge_answer_is_not_read_to_its_end(peer: Peer) -> None:
    sent = 0

    async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        status = "404" if "missing" in request.line else "200"
        writer.write(f"HTTP/1.1 {status} OK\r\ncontent-length: 10000000000\r\n\r\n".encode())
        while True:
            writer.write(b"x" * 65_536)
            sent += 65_536
            await writer.drain()

    peer.handler = endless
    failed(await call(peer.url, max_response="100KB"), "KNHK-HTTP-TOO-LARGE")
    assert sent < 20_000_000
    failed(await call(peer.url + "/missing"), "KNHK-HTTP-STATUS")
    peer.says(answer(body=b"x" * 1024))
    assert len(output(await call(peer.url, max_response="1KB"))["body"]) == 1024
    failed(await call(peer.url, max_response="1023B"), "KNHK-HTTP-TOO-LARGE")


@pytest.mark.parametrize(
    ("body", "encoding", "code"),
    [
        (gzip.compress(b"\0" * 5_000_000, mtime=0), "gzip", "KNHK-HTTP-TOO-LARGE"),
        (gzip.compress(b"hello", mtime=0)[:-9], "gzip", "KNHK-HTTP-RESPONSE"),
        (gzip.compress(b"hello", mtime=0) + b"more", "gzip", "KNHK-HTTP-RESPONSE"),
        (b"plain", "gzip", "KNHK-HTTP-RESPONSE"),
        (b"x", "br", "KNHK-HTTP-RESPONSE"),
    ],
)
async def test_compressed_answers_that_are_bad(peer: Peer, body: bytes, encoding: str, code: str) -> None:
    peer.says(answer(body=body, Content_Encoding=encoding))
    failed(await call(peer.url), code)
    peer.says(answer(500, body=body, Content_Encoding=encoding))
    later(await call(peer.url), "KNHK-HTTP-STATUS")


async def test_messages_hold_no_secrets(peer: Peer) -> None:
    async def echo(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(400, f"{request.headers} {request.line}".encode()))

    peer.handler = echo
    url = f"http://user:passw0rd@127.0.0.1:{peer.port}/hook?token=qwerty123"
    headers = {"X-Api-Key": "key-123456", "Cookie": "a=Bearer zzzzzzzz"}
    message = failed(await call(url, headers=headers, query={"more": "asdfgh99"}), "KNHK-HTTP-STATUS").message
    for secret in ("passw0rd", "qwerty123", "key-123456", "zzzzzzzz", "asdfgh99"):
        assert secret not in message
    assert "/hook: status 400" in message
    assert peer.requests[0].headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    "params",
    [
        {"url": "ftp://example.com/"},
        {"url": "/relative"},
        {"url": "http://"},
        {"url": "file:///etc/passwd"},
        {"url": "http://[bad"},
        {"url": "http://exa mple.com:port/"},
        {"url": "http://user:secret-value/x@host/"},
        {"url": 5},
        {"method": "GET /\r\n"},
        {"headers": {"bad name": "x"}},
        {"headers": {"x": "line\r\nInjected: secret-value"}},
        {"headers": {"x": "ü secret-value"}},
        {"headers": {"x": None}},
        {"json": 1, "body": "x"},
        {"timeout": "0s"},
        {"timeout": "5"},
        {"max_response": "lots"},
        {"expected_status": []},
        {"expected_status": "6xx"},
        {"expected_status": 99},
        {"expected_status": "300-200"},
        {"unknown": 1},
    ],
)
async def test_wrong_params(params: dict[str, Any]) -> None:
    outcome = failed(await call(**{"url": "http://127.0.0.1:9/", **params}), "KNHK-ACTION-PARAMS")
    assert "secret-value" not in outcome.message
    await SHARED.aclose()


async def test_cancelling_closes_the_connection(peer: Peer) -> None:
    gone, reached = asyncio.Event(), asyncio.Event()

    async def hang(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n")
        reached.set()
        try:
            while True:
                writer.write(b"x" * 1000)
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            gone.set()

    peer.handler = hang
    task = asyncio.create_task(call(peer.url, max_response="4MB"))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(3):
        await gone.wait()


async def test_closing_twice_and_opening_again(peer: Peer) -> None:
    output(await call(peer.url))
    await SHARED.aclose()
    await SHARED.aclose()
    output(await call(peer.url))
    assert peer.connections == 2


@pytest.mark.parametrize(
    ("value", "pause"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("0", 0),
        (" 12 ", 12 * SECOND),
        ("9" * 5000, MAX_RETRY_AFTER_NS),
        ("Tue, 14 Nov 2023 22:13:30 GMT", 10 * SECOND),
        ("Tue Nov 14 22:13:30 2023", 10 * SECOND),
        ("Tue, 14 Nov 2023 22:13:10 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_NS),
        (formatdate(1_700_000_100, usegmt=True), 100 * SECOND),
    ],
)
def test_retry_after(value: str | None, pause: int | None) -> None:
    assert retry_after_ns(value, NOW) == pause


@given(st.text() | st.from_regex(r"\w{3}, \d{2} \w{3} \d{4} \d{2}:\d{2}:\d{2} ([A-Z]{3}|[+-]\d{4})"))
def test_any_retry_after_is_read_or_ignored(value: str) -> None:
    pause = retry_after_ns(value, NOW)
    assert pause is None or 0 <= pause <= MAX_RETRY_AFTER_NS


@given(st.integers(100, 599), st.integers(100, 599), st.integers(100, 599))
def test_status_patterns(first: int, last: int, status: int) -> None:
    first, last = min(first, last), max(first, last)
    assert _matcher(f"{first}-{last}")(status) == (first <= status <= last)
    assert _matcher([first, last])(status) == (status in (first, last))
    assert _matcher(f"{first // 100}xx")(status) == (first // 100 == status // 100)


@given(
    st.lists(st.text(alphabet="abcdef ", min_size=1, max_size=12), max_size=4), st.text(alphabet="abcdef ", max_size=60)
)
def test_no_secret_is_left_in_a_text(values: list[str], text: str) -> None:
    secrets = Secrets.of(dict(enumerate(values)), httpx.URL("http://h/"))  # type: ignore[arg-type]
    hidden = secrets.hide(text)
    assert not any(value in hidden for value in secrets.values)


def test_the_defaults() -> None:
    params = HttpParams(url="http://h/")
    assert (params.method, params.expected_status, params.follow_redirects) == ("GET", "2xx", False)


@pytest.fixture
def _tight() -> Iterator[None]:
    before = SHARED.settings
    SHARED.configure(Actions(http_timeout_ns=50_000_000, http_max_response_bytes=100, http_connections=1))
    yield
    SHARED.configure(before)


@pytest.mark.usefixtures("_tight")
async def test_the_limits_of_the_configuration(peer: Peer) -> None:
    peer.says(answer(body=b"x" * 101))
    failed(await call(peer.url), "KNHK-HTTP-TOO-LARGE")
    assert "100B" in failed(await call(peer.url, max_response="101B"), "KNHK-ACTION-PARAMS").message

    async def silent(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    peer.handler = silent
    later(await call(peer.url), "KNHK-HTTP-TIMEOUT")
