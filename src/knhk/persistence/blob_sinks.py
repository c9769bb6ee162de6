"""Writing a blob: a temporary file, which gets its name when all of it is on disk.

The file is locked while it is written, so that whoever tidies up can tell it from what a crash left behind.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

from knhk.domain.blob import OCTETS, BlobReference
from knhk.domain.errors import BlobMismatch, DiskFull, PayloadTooLarge
from knhk.domain.units import format_size
from knhk.persistence.blob_cipher import CHUNK_BYTES, BlobKey
from knhk.persistence.rocksdb_errors import translated

TEMPORARY: Final = "incoming-"
_LOOK_EVERY: Final = 16 << 20


class FileSink:
    """Implements ports.blobs.BlobSink. `keep` gives the finished file its name; it gets the file and the digest."""

    def __init__(
        self,
        directory: Path,
        key: BlobKey | None,
        *,
        max_bytes: int,
        min_free_bytes: int,
        keep: Callable[[Path, str], None],
    ) -> None:
        self._key, self._max_bytes, self._min_free_bytes, self._keep = key, max_bytes, min_free_bytes, keep
        self._digest = sha256()
        self._size = self._looked_at = self._chunks = 0
        self._rest = bytearray()
        try:
            descriptor, name = tempfile.mkstemp(prefix=TEMPORARY, dir=directory)
            self._path = Path(name)
            self._file = os.fdopen(descriptor, "wb", buffering=0)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if key is not None:
                self._file.write(key.header)
        except OSError as error:
            raise translated(error, directory, "writing a blob") from error

    @property
    def size(self) -> int:
        return self._size

    def write(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise PayloadTooLarge(
                f"a blob has at most {format_size(self._max_bytes)}",
                hint="Raise `persistence.blobs.max` in the configuration, or keep the data elsewhere and pass a URL.",
            )
        if self._size >= self._looked_at + _LOOK_EVERY or not self._looked_at:
            self._looked_at = self._size
            self._require_room()
        self._digest.update(piece)
        try:
            if self._key is None:
                _write_all(self._file, piece)
            else:
                self._rest += piece
                while len(self._rest) > CHUNK_BYTES:  # one is left over, for `finish` to seal as the last
                    self._seal(bytes(self._rest[:CHUNK_BYTES]), last=False)
                    del self._rest[:CHUNK_BYTES]
        except OSError as error:
            raise translated(error, self._path, "writing a blob") from error

    def finish(self, media_type: str = OCTETS, expected: str = "") -> BlobReference:
        digest = f"sha256:{self._digest.hexdigest()}"
        if expected and expected != digest:
            self.abort()
            raise BlobMismatch(f"the bytes that came have the digest {digest}, not {expected}")
        try:
            if self._key is not None:
                self._seal(bytes(self._rest), last=True)
            os.fsync(self._file.fileno())
            self._keep(self._path, digest)
        except OSError as error:
            raise translated(error, self._path, "writing a blob") from error
        finally:
            self.abort()
        return BlobReference(digest, self._size, media_type)

    def abort(self) -> None:
        self._rest.clear()
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        assert self._key is not None
        _write_all(self._file, self._key.seal(self._chunks, chunk, last=last))
        self._chunks += 1

    def _require_room(self) -> None:
        status = os.statvfs(self._path.parent)
        if status.f_bavail * status.f_frsize < self._min_free_bytes:
            least = format_size(self._min_free_bytes)
            raise DiskFull(f"no blob is taken: less than {least} are free in {self._path.parent}")


def _write_all(file: object, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]  # type: ignore[attr-defined]


def remove_leftovers(directory: Path) -> None:
    """Remove what interrupted writes left behind; not what somebody is writing."""
    for path in directory.glob(f"{TEMPORARY}*"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except OSError:
            continue  # it is being written, or is gone
