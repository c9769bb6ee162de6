"""The answer to a request of the `http` action: read within a bound, decoded, and cleaned for messages."""

import base64
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Self

import httpx
import msgspec

from knhk.actions.blob_streams import Spill
from knhk.domain.blob import OCTETS, BlobReference, is_media_type

_PIECE_BYTES: Final = 1 << 18
MAX_EXCERPT_BYTES: Final = 65_536
_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS | 32


class BodyTooLarge(Exception):
    """The body has more bytes than allowed."""


class BodyUnreadable(Exception):
    """The body is not in the encoding that its headers say."""


class Secrets(msgspec.Struct, frozen=True):
    """Values that messages must not show, longest first so that no part of a longer one is left."""

    values: tuple[str, ...]

    @classmethod
    def of(cls, headers: Mapping[str, str | int], url: httpx.URL) -> Self:
        """The values of the headers, their words (`Bearer <token>`), the URL's user and password and its query."""
        found = {url.username, url.password, url.query.decode("ascii", "replace"), *url.params.values()}
        for value in headers.values():
            found.update((str(value).strip(), *str(value).split()))
        # Shorter ones would blot out ordinary words and are no secrets worth the name.
        return cls(tuple(sorted((value for value in found if len(value) >= 6), key=len, reverse=True)))

    def hide(self, text: str) -> str:
        """The text with every secret replaced."""
        for value in self.values:
            text = text.replace(value, "***")
        return text


async def read_body(response: httpx.Response, max_bytes: int, *, cut: bool = False) -> bytes:
    """The decoded body; with `cut` only its first `max_bytes`.

    The bound holds for what comes over the wire and for what it unpacks to, so a small archive cannot fill the memory.

    Raises:
        BodyTooLarge: there are more bytes than `max_bytes`.
        BodyUnreadable: the content encoding is unknown or damaged.
    """
    raw = bytearray()
    async for chunk in response.aiter_raw():
        raw += chunk
        if len(raw) > max_bytes:
            if not cut:
                raise BodyTooLarge
            break
    body = _unpack(bytes(raw), response.headers.get("content-encoding", ""), max_bytes, cut)
    if len(body) > max_bytes and not cut:
        raise BodyTooLarge
    return body[:max_bytes]


def _unpack(raw: bytes, encoding: str, max_bytes: int, cut: bool) -> bytes:
    """At most one byte more than allowed, which shows that there is more."""
    match encoding.strip().lower():
        case "" | "identity":
            return raw
        case "gzip" | "x-gzip" | "deflate":
            return _inflate(raw, max_bytes, cut) if raw else raw
        case other:
            raise BodyUnreadable(f"the content encoding {other!r} was not asked for")


def _inflate(raw: bytes, max_bytes: int, cut: bool) -> bytes:
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        body = inflater.decompress(raw, max_bytes + 1)
    except zlib.error as first:
        # Some servers send `deflate` without the zlib header (RFC 9110, 8.4.1.2 notes it).
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            body = inflater.decompress(raw, max_bytes + 1)
        except zlib.error:
            raise BodyUnreadable(f"the compressed body is damaged: {first}") from first
    if not inflater.eof and len(body) <= max_bytes and not cut:
        raise BodyUnreadable("the compressed body ends too early")
    if inflater.unused_data and not cut:
        raise BodyUnreadable("bytes follow the end of the compressed body")
    return body


async def keep_body(response: httpx.Response, spill: Spill) -> bytes | BlobReference:
    """The decoded body, in a blob if it is large. In the memory of a few pieces, whatever it unpacks to.

    Raises BodyUnreadable, PayloadTooLarge, and what the blob area raises.
    """
    try:
        async for piece in _decoded(response):
            await spill.write(piece)
        media_type = response.headers.get("content-type", "")
        return await spill.finish(media_type if is_media_type(media_type) else OCTETS)
    finally:
        await spill.abort()


async def _decoded(response: httpx.Response) -> AsyncIterator[bytes]:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        async for chunk in response.aiter_raw():
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BodyUnreadable(f"the content encoding {encoding!r} was not asked for")
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    came = False
    head: bytes | None = b""  # until the two bytes of the header have come
    try:
        async for chunk in response.aiter_raw():
            came, left = came or bool(chunk), chunk
            while left:
                try:
                    piece = inflater.decompress(left, _PIECE_BYTES)
                except zlib.error:
                    if head is None:
                        raise
                    # Without the header, as in `_inflate`.
                    inflater, left, head = zlib.decompressobj(-zlib.MAX_WBITS), head + left, None
                    continue
                if head is not None:
                    head = head + left if len(head + left) < 2 else None
                yield piece
                left = inflater.unconsumed_tail
    except zlib.error as error:
        raise BodyUnreadable(f"the compressed body is damaged: {error}") from error
    if came and not inflater.eof:
        raise BodyUnreadable("the compressed body ends too early")
    if inflater.unused_data:
        raise BodyUnreadable("bytes follow the end of the compressed body")


def is_json(response: httpx.Response) -> bool:
    """Whether the answer says that its body is JSON."""
    return _is_json(response.headers.get("content-type", ""))


def output_of(response: httpx.Response, body: bytes | BlobReference) -> dict[str, Any]:
    """The step's output. `encoding` says what `body` is: json (decoded), text, base64 of what is no text, or blob."""
    encoding, decoded = (
        ("blob", body.to_dict())
        if isinstance(body, BlobReference)
        else _decode(body, response.headers.get("content-type", ""), response.charset_encoding)
    )
    return {
        "status": response.status_code,
        "headers": {name.lower(): value for name, value in response.headers.items()},
        "body": decoded,
        "encoding": encoding,
    }


def _is_json(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or media.endswith("+json")


def _decode(body: bytes, content_type: str, charset: str | None) -> tuple[str, Any]:
    if body and _is_json(content_type):
        try:
            return "json", msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # a peer that calls something JSON which is not: the text says more than a failure
    try:
        return "text", body.decode(charset or "utf-8")
    except (LookupError, ValueError):
        return "base64", base64.b64encode(body).decode("ascii")
