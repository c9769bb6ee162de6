"""Blobs for functions that are actions: `context.blobs`, in the server from its blob area, in a worker over HTTP.

Everything blocks, as in a `def` action; an `async def` one calls it by `asyncio.to_thread`.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from knhk.domain.blob import JSON_LINES, OCTETS, BlobReference, checked_digest, checked_media_type
from knhk.ports.blobs import Blobs, NoBlobs

PIECE_BYTES: Final = 1 << 20
Blob = BlobReference
"""The reference to a blob, as a param or result of an action."""
Given = BlobReference | Mapping[str, Any] | str
"""A reference, as it stands in params and outputs, or a digest."""
Source = Path | bytes | Iterable[bytes]


class BlobAccess(Protocol):
    """What an action can do with blobs."""

    def put(self, source: Source, media_type: str | None = None) -> BlobReference:
        """A blob of a file, of bytes, or of all pieces of an iterable. Raises PayloadTooLarge, DiskFull and so on."""
        ...

    def size(self, blob: Given) -> int:
        """The size of a blob in bytes. Raises BlobNotFound."""
        ...

    def read(self, blob: Given, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a blob, or a part of them, piece by piece. Raises BlobNotFound."""
        ...

    def open(self, blob: Given) -> BinaryIO:
        """A blob as a file that is open for reading, and can be positioned anywhere. Raises BlobNotFound."""
        ...

    def save(self, blob: Given, target: Path) -> int:
        """Write a blob to a file; its size. The file is replaced when all of it is there."""
        ...


class AreaAccess:
    """BlobAccess over the blob area of this process."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def put(self, source: Source, media_type: str | None = None) -> BlobReference:
        media_type = media_type_of(source, media_type)
        sink = self._blobs.begin()
        try:
            for piece in pieces_of(source):
                sink.write(piece)
            return sink.finish(media_type)
        finally:
            sink.abort()

    def size(self, blob: Given) -> int:
        return self._blobs.size(digest_of(blob))

    def read(self, blob: Given, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._blobs.pieces(digest_of(blob), start, length)

    def open(self, blob: Given) -> BinaryIO:
        return opened(self, blob)

    def save(self, blob: Given, target: Path) -> int:
        return save(self.read(blob), target)


class _Provided:
    access: BlobAccess = AreaAccess(NoBlobs("this process has neither a blob area nor a server"))


def provide(access: BlobAccess) -> None:
    """Let this process's actions reach blobs this way."""
    _Provided.access = access


def provided() -> BlobAccess:
    """How this process's actions reach blobs."""
    return _Provided.access


def digest_of(blob: Given) -> str:
    """The digest of a blob that is named in any way. Raises InvalidParameter."""
    if isinstance(blob, BlobReference):
        return blob.digest
    return checked_digest(str(blob.get("$blob")) if isinstance(blob, Mapping) else blob)


def media_type_of(source: Source, given: str | None) -> str:
    """The media type: as given, or guessed from a file's name. Raises InvalidParameter."""
    import mimetypes

    guessed = None
    if isinstance(source, Path):
        guessed = JSON_LINES if source.suffix in (".jsonl", ".ndjson") else mimetypes.guess_type(source.name)[0]
    return checked_media_type(given or guessed or OCTETS)


def pieces_of(source: Source) -> Iterator[bytes]:
    """The bytes of a file, of bytes, or of an iterable. Raises OSError if the file cannot be read."""
    if isinstance(source, bytes):
        for at in range(0, len(source), PIECE_BYTES):
            yield source[at : at + PIECE_BYTES]
    elif isinstance(source, Path):
        with source.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
    else:
        yield from source


def save(pieces: Iterator[bytes], target: Path) -> int:
    """Write pieces to a file, which is replaced when all of them are there; the size."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            size = sum(file.write(piece) for piece in pieces)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return size


def opened(access: BlobAccess, blob: Given) -> BinaryIO:
    """A blob as a file; read from its beginning to its end, it is compared with its digest. Raises BlobNotFound."""
    return io.BufferedReader(_Reader(access, blob), PIECE_BYTES)


class _Reader(io.RawIOBase):
    def __init__(self, access: BlobAccess, blob: Given) -> None:
        self._access, self._blob, self._size = access, blob, access.size(blob)
        self._at = 0
        self._pieces: Iterator[bytes] | None = None
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        if at < 0:
            raise ValueError(f"a blob has no byte {at}")
        if at != self._at:
            self._at, self._pieces, self._rest = at, None, memoryview(b"")
        return at

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if self._at >= self._size and (self._at or self._pieces is not None):
                return 0
            if self._pieces is None:
                self._pieces = iter(self._access.read(self._blob, self._at))
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest, self._at = self._rest[count:], self._at + count
        return count

    def close(self) -> None:
        self._pieces, self._rest = None, memoryview(b"")
        super().close()
