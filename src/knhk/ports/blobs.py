"""The blob area, as the engine and the actions need it.

A blob is written piece by piece and is there, whole and durable, when `finish` returns; before that, or if the process
dies, nothing of it is there. It stays while a payload of a run refers to it, and for a while after it was written.
"""

from collections.abc import Iterator
from typing import Protocol

from knhk.domain.blob import OCTETS, BlobReference, digests_in
from knhk.domain.errors import Unsupported


class BlobSink(Protocol):
    """A blob that is being written. It blocks: call it in a thread. Leave it by `finish` or by `abort`."""

    @property
    def size(self) -> int:
        """Bytes so far."""
        ...

    def write(self, piece: bytes) -> None:
        """Add bytes. Raises PayloadTooLarge, DiskFull or StorageUnavailable."""
        ...

    def finish(self, media_type: str = OCTETS, expected: str = "") -> BlobReference:
        """Make it durable, and give the reference.

        Raises BlobMismatch if `expected` (`sha256:...`) is not its digest, DiskFull or StorageUnavailable.
        """
        ...

    def abort(self) -> None:
        """Drop what was written; nothing after `finish`."""
        ...


class Blobs(Protocol):
    """All blobs of a process. What blocks is to be called in a thread."""

    @property
    def inline_bytes(self) -> int:
        """What actions give is a blob if it is larger than this."""
        ...

    @property
    def data_bytes(self) -> int:
        """Data that later expressions may need, such as rows, are a blob if they are larger than this."""
        ...

    @property
    def max_bytes(self) -> int:
        """The size of the largest blob; 0 where there are none."""
        ...

    def begin(self) -> BlobSink:
        """A new blob. Blocks. Raises Unsupported where there is no blob area."""
        ...

    def size(self, digest: str) -> int:
        """The size of a blob in bytes. Quick. Raises BlobNotFound or Unsupported."""
        ...

    def pieces(self, digest: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """A blob's bytes, or a part of them. Each step blocks.

        Raises BlobNotFound; ReceiptCorrupt before the last piece of a whole blob if it is not what its digest says.
        """
        ...

    def require(self, raw: bytes) -> None:
        """Raise BlobNotFound if a payload refers to a blob that is not there; keep the others for a while. Quick."""
        ...


class NoBlobs:
    """Where there is no blob area; `reason` says why."""

    inline_bytes = data_bytes = 1 << 62
    max_bytes = 0

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def begin(self) -> BlobSink:
        raise self._absent()

    def size(self, digest: str) -> int:
        raise self._absent()

    def pieces(self, digest: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        raise self._absent()

    def require(self, raw: bytes) -> None:
        if digests_in(raw):
            raise self._absent()

    def _absent(self) -> Unsupported:
        return Unsupported(f"there are no blobs here: {self.reason}", hint="docs/blobs.md says where there are.")
