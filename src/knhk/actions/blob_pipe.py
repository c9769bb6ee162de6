"""Blobs for a function in a process of its own: it asks the server for each piece, over the pipe that it is called by.

The process sends a request and waits for the reply, so that neither side holds more than a piece. What a call has begun
and not finished is dropped when it ends, however it ends.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from knhk.actions.blob_access import Given, Source, digest_of, media_type_of, opened, pieces_of, save
from knhk.domain.blob import BlobReference
from knhk.domain.errors import InvalidInput, KnhkError, by_code
from knhk.ports.blobs import Blobs, BlobSink


class Begin(msgspec.Struct, tag=True, array_like=True):
    """A new blob."""


class Write(msgspec.Struct, tag=True, array_like=True):
    """More of a new blob."""

    number: int
    piece: bytes


class Finish(msgspec.Struct, tag=True, array_like=True):
    """A new blob is complete; the reply is its reference."""

    number: int
    media_type: str


class Open(msgspec.Struct, tag=True, array_like=True):
    """Read a blob, or a part of it."""

    digest: str
    start: int
    length: int | None


class Next(msgspec.Struct, tag=True, array_like=True):
    """The next piece of what is read; empty at the end."""

    number: int


class Drop(msgspec.Struct, tag=True, array_like=True):
    """What was begun or opened is not needed any more."""

    number: int


class Size(msgspec.Struct, tag=True, array_like=True):
    """The size of a blob."""

    digest: str


Kind = TypeVar("Kind")
Request = Begin | Write | Finish | Open | Next | Drop | Size


class Reply(msgspec.Struct, array_like=True):
    """What was asked for, or the error with this code."""

    value: int | bytes | BlobReference | None = None
    code: str = ""
    message: str = ""


class Desk:
    """The server's side: answers the requests of one call. Everything blocks."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()  # a call may end while one of its requests is being answered
        self._sinks: dict[int, BlobSink] = {}
        self._readers: dict[int, Iterator[bytes]] = {}
        self._last = 0

    @property
    def has_begun(self) -> bool:
        """Whether something may have to be dropped."""
        return self._last > 0

    def answer(self, request: Request) -> Reply:
        """The reply; what goes wrong with blobs is one too."""
        try:
            with self._lock:
                return Reply(self._answer(request))
        except KnhkError as error:
            return Reply(None, error.code, error.message)

    def close(self) -> None:
        """Drop what is not finished."""
        with self._lock:
            self._readers.clear()
            while self._sinks:
                self._sinks.popitem()[1].abort()

    def _answer(self, request: Request) -> int | bytes | BlobReference | None:
        match request:
            case Begin():
                self._last += 1
                self._sinks[self._last] = self._blobs.begin()
                return self._last
            case Write(number=number, piece=piece):
                self._known(self._sinks, number).write(piece)
            case Finish(number=number, media_type=media_type):
                reference = self._known(self._sinks, number).finish(media_type)
                del self._sinks[number]
                return reference
            case Open(digest=digest, start=start, length=length):
                self._last += 1
                self._readers[self._last] = self._blobs.pieces(digest, start, length)
                return self._last
            case Next(number=number):
                reader: Iterator[bytes] = self._known(self._readers, number)
                return next(reader, b"")
            case Drop(number=number):
                self._readers.pop(number, None)
                if (sink := self._sinks.pop(number, None)) is not None:
                    sink.abort()
            case Size(digest=digest):
                return self._blobs.size(digest)
        return None

    @staticmethod
    def _known(begun: dict[int, Kind], number: int) -> Kind:
        if number not in begun:
            raise InvalidInput("the call of the function that began this has ended")
        return begun[number]


class PipeAccess:
    """The function's side: BlobAccess over `ask`, which sends a request and waits for the reply."""

    def __init__(self, ask: Callable[[Request], Reply]) -> None:
        self._send = ask
        self._lock = threading.Lock()  # a function may have threads

    def put(self, source: Source, media_type: str | None = None) -> BlobReference:
        media_type = media_type_of(source, media_type)
        number: Any = self._ask(Begin())
        try:
            for piece in pieces_of(source):
                self._ask(Write(number, bytes(piece)))
            reference = self._ask(Finish(number, media_type))
            assert isinstance(reference, BlobReference)
            return reference
        finally:
            self._ask(Drop(number))

    def size(self, blob: Given) -> int:
        size = self._ask(Size(digest_of(blob)))
        assert isinstance(size, int)
        return size

    def read(self, blob: Given, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        number: Any = self._ask(Open(digest_of(blob), start, length))
        try:
            while piece := self._ask(Next(number)):
                assert isinstance(piece, bytes)
                yield piece
        finally:
            self._ask(Drop(number))

    def open(self, blob: Given) -> BinaryIO:
        return opened(self, blob)

    def save(self, blob: Given, target: Path) -> int:
        return save(self.read(blob), target)

    def _ask(self, request: Request) -> int | bytes | BlobReference | None:
        with self._lock:
            reply = self._send(request)
        if reply.code:
            raise by_code().get(reply.code, KnhkError)(reply.message)
        return reply.value
