"""Blobs in the archive: there before the workflows that refer to them are pruned, and read from there afterwards.

blobs/ab/abcd...      the file of a blob, as it was in the blob area, encrypted or not
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from knhk.domain.errors import BackupUnavailable, StorageUnavailable
from knhk.persistence.blob_area import EMPTY, FOLDER, PIECE_BYTES, BlobArea
from knhk.persistence.blob_check import check_blobs
from knhk.persistence.verification import Report
from knhk.ports.keys import DataKeys


class BlobPlace(Protocol):
    """Where archives are kept. Everything blocks, and raises KnhkError."""

    def put(self, name: str, content: bytes | Path) -> None: ...

    def has(self, name: str) -> bool: ...

    def stream(self, name: str) -> Iterator[bytes]: ...


class BlobArchive:
    """Puts blobs of an area into the archive. Everything blocks."""

    def __init__(self, area: BlobArea, place: Callable[[], BlobPlace]) -> None:
        self._area, self._place = area, place

    def keep_those_of(self, runs: Iterable[int]) -> int:
        """Archive what these runs refer to; the bytes that were put there. Raises KnhkError if one of them is not."""
        if not self._area.is_marked:
            raise StorageUnavailable(f"it is not known which blobs in {self._area.path} are used")
        return self.keep(name for run in runs for name in self._area.blobs_of(run))

    def keep(self, names: Iterable[str]) -> int:
        """Archive these files unless they are there already; the bytes that were put there."""
        place, size = self._place(), 0
        for name in dict.fromkeys(names):
            path, target = self._area.file(name), _target(name)
            if not path.exists() or place.has(target):
                continue
            place.put(target, path)
            with path.open("rb") as file:
                if _digest(place.stream(target)) != _digest(iter(lambda: file.read(PIECE_BYTES), b"")):
                    raise BackupUnavailable(f"the archive said that it has {target}, and has something else there")
            size += path.stat().st_size
        return size


class ArchivedBlobs:
    """Reads blobs from an archive: one at a time is brought into an area in a temporary directory."""

    def __init__(self, place: BlobPlace, keys: DataKeys | None) -> None:
        self._place, self._keys = place, keys

    def has(self, digest: str) -> bool:
        """Whether a blob was archived."""
        return digest == EMPTY or self._name(BlobArea.reader(Path(), self._keys), digest) is not None

    @contextmanager
    def area_with(self, digest: str) -> Iterator[BlobArea]:
        """An area that has this blob, if it was archived. Raises BackupUnavailable."""
        with tempfile.TemporaryDirectory(prefix="knhk-archive-") as folder:
            area = BlobArea.reader(Path(folder), self._keys)
            name = self._name(area, digest)
            if name is not None:
                path = area.file(name)
                path.parent.mkdir(parents=True)
                with path.open("wb") as file:
                    for piece in self._place.stream(_target(name)):
                        file.write(piece)
            yield area

    def check(self, used: dict[str, int], report: Report) -> None:
        """Read every blob of `used`, which has a run for each digest; what is wrong goes to the report."""
        for digest, run in used.items():
            with self.area_with(digest) as area:
                check_blobs(area, {digest: run}, report, lambda *_: None)

    def _name(self, area: BlobArea, digest: str) -> str | None:
        return next((name for name in area.names_of(digest) if self._place.has(_target(name))), None)


def _target(name: str) -> str:
    return f"{FOLDER}/{name[:2]}/{name}"


def _digest(pieces: Iterator[bytes]) -> bytes:
    found = sha256()
    for piece in pieces:
        found.update(piece)
    return found.digest()
