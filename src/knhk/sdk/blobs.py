"""Blobs over HTTP: large payloads are sent once, by their digest, and read piece by piece.

    report = client.blobs.put(Path("report.csv"))
    client.submit("import.yaml", {"report": report})
    client.blobs.save(run.outputs["result"], Path("result.csv"))

A file that the server has already is not sent again. What is read is compared with its digest.
"""

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import httpx
import msgspec

from knhk.actions.blob_access import PIECE_BYTES, Given, Source, digest_of, media_type_of, opened, pieces_of, save
from knhk.domain.blob import BlobReference
from knhk.domain.errors import BlobMismatch, InvalidInput, NotFound
from knhk.sdk.answers import CONNECT_S, error_of
from knhk.sdk.calls import Call

if TYPE_CHECKING:
    from knhk.sdk.client import AsyncClient, Client

_PIECE_S: Final = 60.0
_FINISH_S: Final = 300.0


class Blobs:
    """The blobs of a server, for programs without an event loop."""

    def __init__(self, client: "Client", http: httpx.Client) -> None:
        self._client, self._http = client, http

    def put(self, source: Source, media_type: str | None = None) -> BlobReference:
        """Send a file, bytes, or pieces of bytes, and give the reference to them.

        The media type of a file is guessed from its name. Pieces are sent once, as they come.
        """
        media_type = media_type_of(source, media_type)
        if not isinstance(source, Path | bytes):
            return self._stream(source, media_type)
        digest, size = _digest(source)
        if not self._has(digest):
            self._client.attempt(_put(digest), lambda: self._send(source, digest, size, media_type))
        return BlobReference(digest, size, media_type)

    def size(self, blob: Given) -> int:
        """The size of a blob in bytes. Raises BlobNotFound."""
        call = _get(blob)
        return int(self._client.attempt(call, lambda: self._head(call)).headers["content-length"])

    def read(self, blob: Given, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a blob, or a part of them, piece by piece. Raises BlobNotFound, BlobMismatch."""
        call, found = _get(blob), sha256()
        with self._http.stream("GET", call.path, headers=_part(start, length), timeout=_timeout()) as answer:
            if answer.is_error:
                raise error_of(answer.status_code, answer.read(), answer.headers.get("retry-after"))
            for piece in answer.iter_bytes(PIECE_BYTES):
                found.update(piece)
                yield piece
        _compare(blob, found.hexdigest(), start, length)

    def open(self, blob: Given) -> BinaryIO:
        """A blob as a file that is open for reading, and can be positioned anywhere. Raises BlobNotFound."""
        return opened(self, blob)

    def save(self, blob: Given, target: Path) -> int:
        """Write a blob to a file; its size. The file is replaced when all of it is there."""
        return save(self.read(blob), target)

    def _stream(self, source: Iterable[bytes], media_type: str) -> BlobReference:
        call = Call("POST", "/blobs", dict[str, Any], repeatable=False)

        def send() -> BlobReference:
            answer = self._http.post(
                call.path, content=source, headers={"content-type": media_type}, timeout=_timeout()
            )
            if answer.is_error:
                raise error_of(answer.status_code, answer.content, answer.headers.get("retry-after"))
            return msgspec.json.decode(answer.content, type=BlobReference)

        return self._client.attempt(call, send)

    def _has(self, digest: str) -> bool:
        call = _get(digest)
        try:
            self._client.attempt(call, lambda: self._head(call))
        except NotFound:
            return False
        return True

    def _head(self, call: Call[Any]) -> httpx.Response:
        answer = self._http.head(call.path, timeout=_timeout())
        if answer.is_error:  # an answer to HEAD has no body that says why
            answer = self._http.get(call.path, timeout=_timeout())
            raise error_of(answer.status_code, answer.content, answer.headers.get("retry-after"))
        return answer

    def _send(self, source: Path | bytes, digest: str, size: int, media_type: str) -> None:
        headers = {"content-type": media_type, "content-length": str(size)}
        answer = self._http.put(_put(digest).path, content=_pieces(source), headers=headers, timeout=_timeout())
        if answer.is_error:
            raise error_of(answer.status_code, answer.content, answer.headers.get("retry-after"))


class AsyncBlobs:
    """The blobs of a server, for programs with an event loop."""

    def __init__(self, client: "AsyncClient", http: httpx.AsyncClient) -> None:
        self._client, self._http = client, http

    async def put(self, source: Path | bytes, media_type: str | None = None) -> BlobReference:
        """As `Blobs.put`."""
        import asyncio

        digest, size = await asyncio.to_thread(_digest, source)
        media_type = media_type_of(source, media_type)
        if not await self._has(digest):
            await self._client.attempt(_put(digest), lambda: self._send(source, digest, size, media_type))
        return BlobReference(digest, size, media_type)

    async def size(self, blob: Given) -> int:
        """As `Blobs.size`."""
        call = _get(blob)
        return int((await self._client.attempt(call, lambda: self._head(call))).headers["content-length"])

    async def read(self, blob: Given, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """As `Blobs.read`."""
        call, found = _get(blob), sha256()
        async with self._http.stream("GET", call.path, headers=_part(start, length), timeout=_timeout()) as answer:
            if answer.is_error:
                raise error_of(answer.status_code, await answer.aread(), answer.headers.get("retry-after"))
            async for piece in answer.aiter_bytes(PIECE_BYTES):
                found.update(piece)
                yield piece
        _compare(blob, found.hexdigest(), start, length)

    async def _has(self, digest: str) -> bool:
        call = _get(digest)
        try:
            await self._client.attempt(call, lambda: self._head(call))
        except NotFound:
            return False
        return True

    async def _head(self, call: Call[Any]) -> httpx.Response:
        answer = await self._http.head(call.path, timeout=_timeout())
        if answer.is_error:
            answer = await self._http.get(call.path, timeout=_timeout())
            raise error_of(answer.status_code, answer.content, answer.headers.get("retry-after"))
        return answer

    async def _send(self, source: Path | bytes, digest: str, size: int, media_type: str) -> None:
        import asyncio

        async def pieces() -> AsyncIterator[bytes]:
            found = _pieces(source)
            while piece := await asyncio.to_thread(next, found, b""):
                yield piece

        headers = {"content-type": media_type, "content-length": str(size)}
        answer = await self._http.put(_put(digest).path, content=pieces(), headers=headers, timeout=_timeout())
        if answer.is_error:
            raise error_of(answer.status_code, answer.content, answer.headers.get("retry-after"))


def _digest(source: Path | bytes) -> tuple[str, int]:
    found, size = sha256(), 0
    for piece in _pieces(source):
        found.update(piece)
        size += len(piece)
    return f"sha256:{found.hexdigest()}", size


def _pieces(source: Source) -> Iterator[bytes]:
    try:
        yield from pieces_of(source)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {source!r}") from error
    except OSError as error:
        raise InvalidInput(f"{source!r} cannot be read: {os.strerror(error.errno or 0)}") from error


def _get(blob: Given) -> Call[Any]:
    return Call("GET", f"/blobs/{digest_of(blob)}", dict[str, Any])


def _put(digest: str) -> Call[Any]:
    return Call("PUT", f"/blobs/{digest}", dict[str, Any])


def _part(start: int, length: int | None) -> dict[str, str]:
    if not start and length is None:
        return {"accept-encoding": "identity"}
    end = "" if length is None else str(start + length - 1)
    return {"accept-encoding": "identity", "range": f"bytes={start}-{end}"}


def _timeout() -> httpx.Timeout:
    """For each piece; the server may take longer to have a large blob on disk."""
    return httpx.Timeout(_PIECE_S, connect=CONNECT_S, read=_FINISH_S)


def _compare(blob: Given, found: str, start: int, length: int | None) -> None:
    if not start and length is None and f"sha256:{found}" != digest_of(blob):
        raise BlobMismatch(f"the bytes that came have the digest sha256:{found}, not {digest_of(blob)}")
