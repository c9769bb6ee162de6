"""Blobs in the place that segments are shipped to: there before the segments that refer to them, and back from there.

    blobs/ab/abcd...      the file of a blob, as it is in the blob area, encrypted or not

What a committed block refers to is in the area, since its blobs were durable before it. So whoever ships all blobs that
became used by now, and then the blocks that were committed before, never ships a reference without its blob.
"""

import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final

from knhk.domain.errors import BackupCorrupt, BackupUnavailable, NotFound
from knhk.persistence.blob_area import FOLDER, BlobArea
from knhk.persistence.scanner import Progress
from knhk.persistence.sync import sync_path
from knhk.recovery.durable_files import digest_of
from knhk.recovery.places import Place

_MOST_WAITING: Final = 10_000


class BlobShipping:
    """Ships the blobs of one area. Everything blocks."""

    def __init__(self, area: BlobArea) -> None:
        self._area = area
        self._waiting: list[str] = []
        self.bytes_total = 0

    def connect(self, place: Place) -> None:
        """Find out which blobs are not in the place yet."""
        self._area.written = []
        there = {entry.name.rpartition("/")[2] for entry in place.entries(FOLDER)}
        self._waiting = [name for name in self._area.names() if name not in there and self._area.users(name)]

    def ship(self, place: Place) -> None:
        """Ship what became used since. Raises BackupUnavailable; then the same blobs are shipped the next time."""
        written = self._area.written
        if written is None or len(written) > _MOST_WAITING:
            self.connect(place)
        elif written:
            taken = written[:]
            self._waiting += [name for name in dict.fromkeys(taken) if name not in self._waiting]
            del written[: len(taken)]
        while self._waiting:
            self._one(place, self._waiting[0])
            del self._waiting[0]

    def _one(self, place: Place, name: str) -> None:
        path = self._area.file(name)
        target = f"{FOLDER}/{name[:2]}/{name}"
        if not path.exists() or place.has(target):
            return  # it was erased meanwhile, or is there already
        place.put(target, path)
        found = sha256()
        for piece in place.stream(target):
            found.update(piece)
        if found.hexdigest() != digest_of(path):
            raise BackupUnavailable(f"{place} said that it has {target}, and has something else there")
        self.bytes_total += path.stat().st_size


def fetch(place: Place, area: BlobArea, digests: Iterable[str], progress: Progress) -> int:
    """Bring the blobs that are missing in an area from a place; how many came. Raises BackupCorrupt, DiskFull.

    One that the place does not have either stays missing: verification names it.
    """
    missing = [digest for digest in digests if area.find(digest) is None]
    came = 0
    for number, digest in enumerate(missing):
        for name in area.names_of(digest):
            try:
                _write(area.file(name), place, f"{FOLDER}/{name[:2]}/{name}")
            except NotFound:
                continue
            came += 1
            break
        progress("blobs", number + 1, len(missing))
    return came


def _write(path: Path, place: Place, name: str) -> None:
    pieces = place.stream(name)
    first = next(pieces, None)
    if first is None:
        raise BackupCorrupt(f"{place}/{name} is empty")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(first)
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        sync_path(path.parent)
    finally:
        partial.unlink(missing_ok=True)
