"""Blobs for functions that are actions: `context.blobs`, in the server from its blob area, in a worker over HTTP.

Everything blocks, as in a `def` action; an `async def` one calls it by `asyncio.to_thread`.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from knhk.domain.blob import OCTETS, BlobReference, checked_digest, checked_media_type
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

    def read(self, blob: Given, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a blob, or a part of them, piece by piece. Raises BlobNotFound."""
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

    def read(self, blob: Given, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._blobs.pieces(digest_of(blob), start, length)

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

    guessed = mimetypes.guess_type(source.name)[0] if isinstance(source, Path) else None
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
