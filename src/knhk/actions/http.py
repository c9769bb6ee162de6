"""`http`: one request to another system, as a step.

A request that may succeed later (no connection, timeout, 408, 425, 429, 5xx) gives RetryLater, any other unexpected
answer fails for good. Messages never hold header values, credentials of the URL, or its query.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Annotated, Any, Final

import httpx
import msgspec

from knhk.actions.blob_streams import Keep, Spill, pieces
from knhk.actions.http_response import (
    MAX_EXCERPT_BYTES,
    BodyTooLarge,
    BodyUnreadable,
    Secrets,
    is_json,
    keep_body,
    output_of,
    read_body,
)
from knhk.actions.parameters import parse, wrong
from knhk.actions.registry import Action, Failed, Invocation, Outcome, RetryLater, Succeeded
from knhk.actions.schema import schema_of
from knhk.config import Actions
from knhk.domain.blob import BlobReference, checked_media_type
from knhk.domain.errors import PayloadTooLarge
from knhk.domain.plan import ActionTraits
from knhk.domain.units import SECOND, format_size, parse_duration_ns, parse_size_bytes
from knhk.ports.blobs import Blobs, NoBlobs

NAME: Final = "http"
TIMEOUT_CODE: Final = "KNHK-HTTP-TIMEOUT"
CONNECTION_CODE: Final = "KNHK-HTTP-CONNECTION"
STATUS_CODE: Final = "KNHK-HTTP-STATUS"
REQUEST_CODE: Final = "KNHK-HTTP-REQUEST"
TOO_LARGE_CODE: Final = "KNHK-HTTP-TOO-LARGE"
RESPONSE_CODE: Final = "KNHK-HTTP-RESPONSE"
MAX_RETRY_AFTER_NS: Final = 24 * 3600 * SECOND
"""A peer that asks for a longer pause is asked again after a day: its clock or its mind may be wrong."""

# Too early (RFC 8470), request timeout and too many requests are the 4xx that ask for another attempt.
_RETRYABLE: Final = frozenset({408, 425, 429})
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_NO_BLOBS: Final = NoBlobs("this process has no blob area")
_STATUS: Final = "^([1-5]xx|[1-5][0-9][0-9](-[1-5][0-9][0-9])?)$"

Scalar = str | int | float | bool | None
StatusPattern = Annotated[int, msgspec.Meta(ge=100, le=599)] | Annotated[str, msgspec.Meta(pattern=_STATUS)]


class HttpParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The request, which statuses are a success, and what the answer may cost in time and memory.

    Without `timeout` and `max_response` the configuration's limits hold; a body that becomes no blob cannot exceed its.
    """

    url: str
    method: str = "GET"
    headers: dict[str, str | int] = {}
    query: dict[str, Scalar | list[Scalar]] = {}
    json: Any = msgspec.UNSET
    body: str | BlobReference | None = None
    timeout: str | None = None
    expected_status: StatusPattern | list[StatusPattern] = "2xx"
    max_response: str | None = None
    blob: Keep = "auto"
    follow_redirects: bool = False


class Call(msgspec.Struct, frozen=True):
    """A request that is ready to be sent."""

    request: httpx.Request
    where: str
    secrets: Secrets
    expected: Callable[[int], bool]
    timeout_s: float
    max_bytes: int
    max_blob_bytes: int
    keep: Keep
    follow_redirects: bool


class SharedClient:
    """The connections of this process: opened when first used, and anew when the event loop is another one."""

    def __init__(self) -> None:
        self.settings = Actions()
        self.blobs: Blobs = _NO_BLOBS
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def configure(self, settings: Actions, blobs: Blobs = _NO_BLOBS) -> None:
        """Take the limits from the configuration, and where large bodies go; to be called before the first request."""
        self.settings, self.blobs = settings, blobs

    def get(self) -> httpx.AsyncClient:
        """The client of the running loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client, self._loop = _new_client(self.settings.http_connections), loop
        return self._client

    async def aclose(self) -> None:
        """Close the connections, if there are any in this loop."""
        client, loop = self._client, self._loop
        self._client = self._loop = None
        if client is not None and loop is asyncio.get_running_loop():
            await client.aclose()


def _new_client(connections: int) -> httpx.AsyncClient:
    # A jar that takes no cookies: what one workflow is given must not be sent by another.
    no_cookies = CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=15.0)
    headers = {"user-agent": "knhk", "accept-encoding": "gzip, deflate"}
    return httpx.AsyncClient(limits=limits, headers=headers, cookies=no_cookies)


SHARED: Final = SharedClient()


async def run(invocation: Invocation) -> Outcome:
    """Sends the request and judges the answer."""
    params = parse(invocation, NAME, HttpParams)
    if isinstance(params, Failed):
        return params
    client = SHARED.get()
    try:
        call = await prepare(client, params, invocation)
    except ValueError as error:
        return wrong(NAME, str(error))
    try:
        async with asyncio.timeout(call.timeout_s):
            return await _exchange(client, call, invocation.now_ns)
    except (TimeoutError, httpx.TimeoutException):
        return RetryLater(TIMEOUT_CODE, f"{call.where}: no complete answer within {call.timeout_s:g} s")
    except (
        httpx.UnsupportedProtocol,
        httpx.LocalProtocolError,
        httpx.TooManyRedirects,
        httpx.StreamConsumed,  # a redirect of a blob, which would have to be sent twice
    ) as error:
        # Their text may quote the header at fault, which may be secret; the kind says enough.
        return Failed(REQUEST_CODE, f"{call.where}: {type(error).__name__}")
    except httpx.TransportError as error:
        reason = call.secrets.hide(str(error))
        return RetryLater(CONNECTION_CODE, f"{call.where}: {type(error).__name__}: {reason}"[:300])


async def _exchange(client: httpx.AsyncClient, call: Call, now_ns: int) -> Outcome:
    response = await client.send(call.request, stream=True, follow_redirects=call.follow_redirects)
    try:
        if not call.expected(response.status_code):
            return await _unexpected(response, call, now_ns)
        try:
            if call.keep == "never" or (call.keep == "auto" and is_json(response)):
                body: bytes | BlobReference = await read_body(response, call.max_bytes)
            else:
                body = await keep_body(response, Spill(SHARED.blobs, call.keep, call.max_blob_bytes))
        except (BodyTooLarge, PayloadTooLarge):
            return Failed(TOO_LARGE_CODE, f"{call.where}: the answer is larger than `max_response` allows")
        except BodyUnreadable as error:
            return Failed(RESPONSE_CODE, f"{call.where}: {error}")
        return Succeeded(output_of(response, body))
    finally:
        await response.aclose()


async def _unexpected(response: httpx.Response, call: Call, now_ns: int) -> Outcome:
    status = response.status_code
    excerpt = await _excerpt(response, call.secrets)
    message = f"{call.where}: status {status}{excerpt}"
    if status in _RETRYABLE or 500 <= status <= 599:
        return RetryLater(STATUS_CODE, message, retry_after_ns(response.headers.get("retry-after"), now_ns))
    return Failed(STATUS_CODE, message)


async def _excerpt(response: httpx.Response, secrets: Secrets) -> str:
    """The beginning of the body for a message. The status has decided already, so a broken body changes nothing."""
    try:
        body = await read_body(response, MAX_EXCERPT_BYTES, cut=True)
    except (httpx.TransportError, BodyUnreadable):
        return ""
    text = " ".join(secrets.hide(body.decode("utf-8", "replace")).split())
    printable = "".join(character if character.isprintable() else "?" for character in text[:200])
    return f": {printable}" if printable else ""


def retry_after_ns(value: str | None, now_ns: int) -> int | None:
    """The pause that a Retry-After header asks for (RFC 9110, 10.2.3), at most a day; None if it says nothing."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        # More than 18 digits of seconds is not a time any more, and int() would work long on very many.
        return min(int(value), MAX_RETRY_AFTER_NS // SECOND) * SECOND if len(value) <= 18 else MAX_RETRY_AFTER_NS
    try:
        moment = parsedate_to_datetime(value)
        # The oldest of the three forms (asctime) has no zone, and means UTC like the others.
        at_ns = int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()) * SECOND
    except (ValueError, OverflowError):
        return None
    return min(max(0, at_ns - now_ns), MAX_RETRY_AFTER_NS)


async def prepare(client: httpx.AsyncClient, params: HttpParams, invocation: Invocation) -> Call:
    """Build the request. Raises ValueError if the params make none, and BlobNotFound."""
    url = _url(params.url)
    method = params.method.upper()
    if not _TOKEN.fullmatch(method):
        raise ValueError("`method` is not an HTTP method")
    if params.json is not msgspec.UNSET and params.body is not None:
        raise ValueError("give `json` or `body`, not both")
    timeout_ns, max_bytes, max_blob_bytes = _limits(params, SHARED.settings, SHARED.blobs)
    headers = _headers(params, method, invocation)
    if isinstance(params.body, BlobReference):
        headers["content-length"] = str(await asyncio.to_thread(SHARED.blobs.size, params.body.digest))
    request = client.build_request(
        method,
        url.copy_merge_params(params.query) if params.query else url,
        headers=headers,
        content=_content(params),
        timeout=timeout_ns / SECOND,
    )
    return Call(
        request=request,
        where=f"{method} {_shown(url)}",
        secrets=Secrets.of(params.headers, url),
        expected=_matcher(params.expected_status),
        timeout_s=timeout_ns / SECOND,
        max_bytes=max_bytes,
        max_blob_bytes=max_blob_bytes,
        keep=params.blob if SHARED.blobs.max_bytes or params.blob == "always" else "never",
        follow_redirects=params.follow_redirects,
    )


def _limits(params: HttpParams, settings: Actions, blobs: Blobs) -> tuple[int, int, int]:
    """The time in nanoseconds and the size in bytes that the answer may take, in the output and as a blob."""
    timeout_ns = settings.http_timeout_ns if params.timeout is None else parse_duration_ns(params.timeout)
    if timeout_ns == 0:
        raise ValueError("`timeout` must be longer than 0s")
    ceiling = settings.http_max_response_bytes
    if params.max_response is None:
        return timeout_ns, ceiling, blobs.max_bytes
    wanted = parse_size_bytes(params.max_response)
    most = ceiling if params.blob == "never" else max(ceiling, blobs.max_bytes)
    if wanted > most:
        raise ValueError(f"`max_response` is more than the configuration allows: {format_size(most)}")
    return timeout_ns, min(wanted, ceiling), wanted


def _url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        # The parser's own text may quote a piece of the password.
        raise ValueError("`url` is not a valid URL") from None
    # The parser percent-encodes what no host name can hold, instead of refusing it.
    if url.scheme not in ("http", "https") or not url.host or "%" in url.host:
        raise ValueError("`url` must begin with http:// or https:// and name a host")
    return url


def _shown(url: httpx.URL) -> str:
    """The URL as messages show it: without user, password, query and fragment, which may hold secrets."""
    port = f":{url.port}" if url.port is not None else ""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{url.scheme}://{host}{port}{url.path}"[:200]


def _content(params: HttpParams) -> bytes | AsyncIterator[bytes] | None:
    if params.json is not msgspec.UNSET:
        return msgspec.json.encode(params.json)
    if isinstance(params.body, BlobReference):
        return pieces(SHARED.blobs.pieces(params.body.digest))
    return None if params.body is None else params.body.encode()


def _headers(params: HttpParams, method: str, invocation: Invocation) -> dict[str, str]:
    """The headers of the params, and those that are sent unless the params say otherwise."""
    headers: dict[str, str] = {}
    if params.json is not msgspec.UNSET:
        headers["content-type"] = "application/json"
    elif isinstance(params.body, BlobReference):
        headers["content-type"] = checked_media_type(params.body.media_type)
    elif params.body is not None:
        headers["content-type"] = "text/plain; charset=utf-8"
    if method != "GET":
        headers["idempotency-key"] = invocation.idempotency_key
    if invocation.traceparent:
        headers["traceparent"] = invocation.traceparent
    for name, value in params.headers.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not a header name")
        if not _FIELD_VALUE.fullmatch(str(value)):
            raise ValueError(f"the value of header {name!r} has characters that a header cannot hold")
        headers[name.lower()] = str(value).strip()
    return headers


def _matcher(patterns: int | str | list[Any]) -> Callable[[int], bool]:
    ranges = [_range(pattern) for pattern in (patterns if isinstance(patterns, list) else [patterns])]
    if not ranges:
        raise ValueError("`expected_status` is empty")
    return lambda status: any(first <= status <= last for first, last in ranges)


def _range(pattern: int | str) -> tuple[int, int]:
    if isinstance(pattern, int):
        return pattern, pattern
    if pattern.endswith("xx"):
        return int(pattern[0]) * 100, int(pattern[0]) * 100 + 99
    first, _, last = pattern.partition("-")
    if last and last < first:
        raise ValueError(f"`expected_status` {pattern!r} runs backwards")
    return int(first), int(last or first)


ACTION: Final = Action(
    ActionTraits(NAME, pure=False, params_schema=schema_of(HttpParams), reads_dependencies=False),
    "async",
    run,
    __name__,
    SHARED.aclose,
    "sends a request to another system",
)
