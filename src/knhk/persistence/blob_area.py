"""The blob area: large payloads as files beside the journal, found by digest, kept while a run refers to them.

    data/ab/abcd...       a blob: its bytes in a file named by its SHA-256; encrypted, as blob_cipher.py says
    users/<blob>/<run>    an empty file: the run refers to the blob
    runs/<run>/<blob>     the same, the other way round
    erasing/<run>         the run is being erased: as soon as the journal says so, its blobs go too
    marked                says that all marks are there: copies of the area have blobs alone
    incoming-*            a blob that is being written

A blob is synced and has its name before anybody is given its reference; a mark is synced before the receipt that it is
for is committed (blob_keeping.py). So there is never a receipt without its blob; after a crash there may be a blob or a
mark too many, which the background work of protection/blobs.py removes. Everything here blocks, except `require`.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from knhk.domain.blob import checked_digest, digests_in
from knhk.domain.errors import BlobNotFound, EncryptionKeyUnavailable, ReceiptCorrupt
from knhk.domain.identifier import parse, to_text
from knhk.persistence.blob_cipher import (
    CHUNK_BYTES,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    BlobCipher,
    BlobKey,
    path_of,
    size_of,
)
from knhk.persistence.blob_sinks import FileSink, remove_leftovers
from knhk.persistence.rocksdb_errors import translated
from knhk.persistence.sync import sync_path
from knhk.ports.keys import DataKeys, RunPath

PIECE_BYTES: Final = 1 << 20
FOLDER: Final = "blobs"
"""Where it is in a data directory, and in every copy of one."""
EMPTY: Final = f"sha256:{sha256().hexdigest()}"
"""The blob of no bytes is always there, and has no file: some S3 servers take a minute over an empty object."""
_MARKED: Final = "marked"
_WANTED_NS: Final = 60_000_000_000
_SEALED_NAME: Final = 32
_FOLDERS: Final = ("data", "users", "runs", "erasing")


class BlobArea:
    """Implements ports.blobs.Blobs in a directory.

    With `encrypting`, new blobs are encrypted with `keys`; those that are there are read either way. `number` gives a
    new unique number, which orders them by time, and `now_ns` Unix time; who only reads needs neither.
    """

    def __init__(
        self,
        path: Path,
        *,
        inline_bytes: int,
        max_bytes: int,
        min_free_bytes: int,
        data_bytes: int = 4 << 20,
        keys: DataKeys | None = None,
        encrypting: bool = False,
        number: Callable[[], int] = lambda: 0,
        now_ns: Callable[[], int] = lambda: 0,
        neighbours: Callable[[], Iterable[Path]] = tuple,
    ) -> None:
        self.path, self.inline_bytes, self.data_bytes, self.max_bytes = path, inline_bytes, data_bytes, max_bytes
        self._min_free_bytes, self._number, self._now_ns = min_free_bytes, number, now_ns
        self._neighbours = neighbours
        self._cipher = None if keys is None else BlobCipher(keys)
        self._encrypting = encrypting and keys is not None
        self._lock = threading.Lock()
        """Held while a blob is looked for and touched, or looked at and removed."""
        self._wanted: dict[str, int] = {}
        """Blobs that a payload refers to which is about to be committed, and since when."""
        self.written: list[str] | None = None
        """While a list is here, it gets the names of the blobs that become used: whoever ships them takes them out."""

    @classmethod
    def reader(cls, data: Path, keys: DataKeys | None) -> "BlobArea":
        """The area of a data directory, to read what is there."""
        return cls(data / FOLDER, inline_bytes=0, max_bytes=0, min_free_bytes=0, keys=keys)

    def open(self) -> None:
        """Make the directories, and remove what interrupted writes left behind. Raises StorageUnavailable."""
        try:
            for folder in _FOLDERS:
                (self.path / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            remove_leftovers(self.path)
        except OSError as error:
            raise translated(error, self.path, "opening the blob area") from error

    # -- ports.blobs.Blobs

    def begin(self) -> FileSink:
        key = self._cipher.new(self._number()) if self._encrypting and self._cipher is not None else None
        return FileSink(self.path, key, max_bytes=self.max_bytes, min_free_bytes=self._min_free_bytes, keep=self._keep)

    def size(self, digest: str) -> int:
        if digest == EMPTY:
            return 0
        return self._size(self._required(digest))

    def pieces(self, digest: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if digest == EMPTY:
            return
        path = self._required(digest)
        whole = start == 0 and (length is None or length >= self._size(path))
        found = sha256()
        held = b""  # the last piece is given when all of it is known to be good
        for piece in self.stored_pieces(path, start, length):
            if held:
                yield held
            held = piece
            if whole:
                found.update(piece)
        if whole and f"sha256:{found.hexdigest()}" != checked_digest(digest):
            raise ReceiptCorrupt(f"the blob {digest} is not what its digest says")
        if held:
            yield held

    def require(self, raw: bytes) -> None:
        for digest in digests_in(raw):
            if digest == EMPTY:
                continue
            with self._lock:
                path = self._required(digest)
                os.utime(path)
                self._wanted[path.name] = self._now_ns()

    # -- What is there

    def find(self, digest: str) -> Path | None:
        """The file of a blob in this area."""
        return self._find(digest, self.path)

    def _find(self, digest: str, area: Path) -> Path | None:
        for name in self.names_of(digest):
            path = file_in(area, name)
            if path.exists():
                return path
        return None

    def _find_anywhere(self, digest: str) -> Path | None:
        found = self.find(digest)  # first, and nearly always: the neighbours are looked up in their directory
        return found or next(filter(None, (self._find(digest, area) for area in self._neighbours())), None)

    def names(self) -> Iterator[str]:
        """The names of all files, in order."""
        for folder in sorted((self.path / "data").glob("??")):
            for path in sorted(folder.iterdir()):
                yield path.name

    def users(self, name: str) -> list[int]:
        """The runs that refer to a blob."""
        try:
            return sorted(parse(run.name) for run in (self.path / "users" / name).iterdir())
        except FileNotFoundError:
            return []

    def mark_path(self, name: str, workflow_id: int) -> Path:
        """The file that says that a run refers to a blob."""
        return self.path / "users" / name / to_text(workflow_id)

    def stored_pieces(self, path: Path, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The contents of a file of this area, in clear. Raises ReceiptCorrupt, DataErased and so on."""
        try:
            with path.open("rb") as file:
                size = self._size(path)
                end = size if length is None else min(start + length, size)
                if _is_sealed(path):
                    key, stored = self._key(path, file.read(HEADER_BYTES)), os.fstat(file.fileno()).st_size
                    yield from _opened(file, key, stored, start, end)
                else:
                    yield from _plain(file, start, end)
        except FileNotFoundError as error:
            raise BlobNotFound(f"the blob in {path} is gone") from error
        except OSError as error:
            raise translated(error, path, "reading a blob") from error

    # -- Who refers to what

    @property
    def is_marked(self) -> bool:
        """Whether all marks are there; if not, nobody can tell which blobs are used."""
        return (self.path / _MARKED).exists()

    def rebuild(self, used: Iterator[tuple[int, str]]) -> None:
        """Make the marks anew, from the runs and the digests that they refer to: the area was copied without them."""
        if next(self.names(), None) is not None:
            for workflow_id, digest in used:
                self._mark(workflow_id, digest)
        (self.path / _MARKED).write_text("all runs\n")
        sync_path(self.path)

    def mark(self, workflow_id: int, raws: list[bytes]) -> None:
        """Note durably that a run refers to the blobs that are named in these payloads. Raises StorageUnavailable."""
        for digest in dict.fromkeys(digest for raw in raws for digest in digests_in(raw)):
            self._mark(workflow_id, digest)

    def _mark(self, workflow_id: int, digest: str) -> None:
        path = self.find(digest) or self._adopted(digest)
        if path is None:
            return  # it was looked for when the payload came in: somebody has taken it away by hand
        try:
            self._touch_durably(self.mark_path(path.name, workflow_id))
            self._touch_durably(self.path / "runs" / to_text(workflow_id) / path.name)
        except OSError as error:
            raise translated(error, path, "keeping a blob") from error
        self._wanted.pop(path.name, None)
        if self.written is not None:
            self.written.append(path.name)

    def _adopted(self, digest: str) -> Path | None:
        """A neighbour's blob made this area's own, so that it stays whatever becomes of the other."""
        found = self._find_anywhere(digest)
        if found is None or digest == EMPTY:
            return None
        path = self.file(found.name)
        try:
            if _is_sealed(found):
                raise PermissionError("two areas cannot share a key that one of them may have to destroy")
            path.parent.mkdir(mode=0o700, exist_ok=True)
            os.link(found, path)
            sync_path(path.parent)
            sync_path(path.parent.parent)
        except FileExistsError:
            return path
        except OSError:  # on another disk, for example
            sink = self.begin()
            try:
                for piece in self.stored_pieces(found):
                    sink.write(piece)
                sink.finish(expected=digest)
            finally:
                sink.abort()
        return self.find(digest)

    def blobs_of(self, workflow_id: int) -> list[str]:
        """The names of the blobs that a run refers to."""
        try:
            return sorted(blob.name for blob in (self.path / "runs" / to_text(workflow_id)).iterdir())
        except FileNotFoundError:
            return []

    def release(self, workflow_id: int) -> None:
        """The run refers to nothing any more."""
        for name in self.blobs_of(workflow_id):
            self.forget(name, workflow_id)
        _remove_folder(self.path / "runs" / to_text(workflow_id))

    def forget(self, name: str, workflow_id: int) -> None:
        """The run does not refer to this blob."""
        self.mark_path(name, workflow_id).unlink(missing_ok=True)
        (self.path / "runs" / to_text(workflow_id) / name).unlink(missing_ok=True)
        _remove_folder(self.path / "users" / name)

    def collect(self, name: str, before_ns: int) -> int:
        """Remove a blob that nobody refers to and that was not touched since; the bytes that were freed."""
        path = self.file(name)
        with self._lock:
            try:
                status = path.stat()
                if self.users(name) or status.st_mtime_ns >= before_ns:
                    return 0
                path.unlink()
            except FileNotFoundError:
                return 0
        return status.st_size

    # -- Keys

    def generations(self) -> set[int]:
        """The generations of keys that files here are encrypted with."""
        leaves = [self._leaf(self.file(name)) for name in self.names()]
        return {leaf.generation for leaf in leaves if leaf is not None}

    def renew(self, name: str) -> int:
        """Encrypt a file with the present generation of keys if it is an older one's; the bytes that were read.

        It keeps its number, so that erasing it destroys the keys of its older copies too.
        """
        path = self.file(name)
        leaf = self._leaf(path)
        if leaf is None or self._cipher is None or leaf.generation == self._cipher.keys.active:
            return 0

        def replace(temporary: Path, _digest: str) -> None:
            with self._lock:
                if path.exists():  # else it was erased or removed meanwhile
                    temporary.rename(path)
                    sync_path(path.parent)

        key = self._cipher.new(leaf.workflow_id)
        sink = FileSink(self.path, key, max_bytes=1 << 62, min_free_bytes=self._min_free_bytes, keep=replace)
        try:
            for piece in self.stored_pieces(path):
                sink.write(piece)
            sink.finish()
        finally:
            sink.abort()
        return sink.size

    @staticmethod
    def _leaf(path: Path) -> RunPath | None:
        if not _is_sealed(path):
            return None
        try:
            with path.open("rb") as file:
                return path_of(file.read(HEADER_BYTES))
        except FileNotFoundError:
            return None

    # -- Erasure

    def begin_erasure(self, workflow_id: int) -> None:
        """Note durably that the run's blobs are to be destroyed as soon as the journal says that it is erased."""
        if self.blobs_of(workflow_id):
            self._touch_durably(self.path / "erasing" / to_text(workflow_id))

    def erasures(self) -> list[int]:
        """The runs whose erasure has begun."""
        return [parse(run.name) for run in (self.path / "erasing").iterdir()]

    def end_erasure(self, workflow_id: int, *, destroy: bool) -> None:
        """The journal says that the run is erased: what no other run refers to goes at once, for good.

        With `destroy` false the journal says that it is not. What another run is just about to refer to is looked at
        again later. To be called in the thread that uses the key ring.
        """
        if not (note := self.path / "erasing" / to_text(workflow_id)).exists():
            return
        if destroy:
            for name in self.blobs_of(workflow_id):
                with self._lock:
                    if self._is_wanted(name):
                        continue
                    if self.users(name) == [workflow_id]:
                        self._destroy(name)
                self.forget(name, workflow_id)
            if self.blobs_of(workflow_id):
                return
            self.release(workflow_id)
        note.unlink(missing_ok=True)

    def _is_wanted(self, name: str) -> bool:
        since = self._wanted.get(name)
        if since is None or self._now_ns() - since < _WANTED_NS:
            return since is not None
        del self._wanted[name]  # it was refused after all
        return False

    def _destroy(self, name: str) -> None:
        path = self.file(name)
        leaf = self._leaf(path)
        if leaf is not None and self._cipher is not None:  # copies in backups cannot be read any more either
            self._cipher.keys.intend_erasure([leaf])
            self._cipher.keys.settle_erasure([leaf], destroy=True)
        path.unlink(missing_ok=True)
        sync_path(path.parent)

    # -- Files

    def names_of(self, digest: str) -> Iterator[str]:
        """What the file of a blob may be called, the name of a new one first."""
        plain = checked_digest(digest).removeprefix("sha256:")
        names = [plain] if self._cipher is None else [self._cipher.name_of(digest), plain]
        yield from names if self._encrypting else reversed(names)

    def file(self, name: str) -> Path:
        """Where the file of this name is, if there is one."""
        return file_in(self.path, name)

    def _required(self, digest: str) -> Path:
        path = self._find_anywhere(digest)
        if path is None:
            raise _absent(digest)
        return path

    def _key(self, path: Path, header: bytes) -> BlobKey:
        if self._cipher is None:
            raise EncryptionKeyUnavailable(f"the blob in {path} is encrypted, and its key was not given")
        return self._cipher.of(header)

    @staticmethod
    def _size(path: Path) -> int:
        stored = path.stat().st_size
        return size_of(stored) if _is_sealed(path) else stored

    def _keep(self, temporary: Path, digest: str) -> None:
        """Give a finished file its name; if there is one already, that one is as good."""
        if digest == EMPTY:
            return
        path = self.file(next(self.names_of(digest)))
        with self._lock:
            if path.exists():
                os.utime(path)
                return
            if not path.parent.exists():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                sync_path(path.parent.parent)
            temporary.rename(path)
            sync_path(path.parent)

    @staticmethod
    def _touch_durably(path: Path) -> None:
        if path.exists():
            return
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            sync_path(path.parent.parent)
        path.touch(mode=0o600)
        sync_path(path.parent)


def file_in(area: Path, name: str) -> Path:
    """Where the file of this name is in an area."""
    return area / "data" / name[:2] / name


def _is_sealed(path: Path) -> bool:
    """Whether a file is encrypted: its name alone says so, since anything can be the contents of one in clear."""
    return len(path.name) == _SEALED_NAME


def _plain(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    left = max(0, end - start)
    while left and (piece := file.read(min(PIECE_BYTES, left))):
        left -= len(piece)
        yield piece
    if left:
        raise ReceiptCorrupt("the file of a blob has become shorter")


def _opened(file: BinaryIO, key: BlobKey, stored: int, start: int, end: int) -> Iterator[bytes]:
    count = -(-(stored - HEADER_BYTES) // SEALED_CHUNK_BYTES)
    for index in range(start // CHUNK_BYTES, count):
        first = index * CHUNK_BYTES
        if first >= end and index:
            return
        file.seek(HEADER_BYTES + index * SEALED_CHUNK_BYTES)
        chunk = key.open(index, file.read(SEALED_CHUNK_BYTES), last=index == count - 1)
        if piece := chunk[max(0, start - first) : max(0, end - first)]:
            yield piece


def _absent(digest: str) -> BlobNotFound:
    return BlobNotFound(f"there is no blob {digest}")


def _remove_folder(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return  # it has something in it again, or is gone
