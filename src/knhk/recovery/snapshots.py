"""Snapshots below one directory: taken under load, listed, pruned.

A snapshot is a directory of hard links to the store's files (files that RocksDB writes once and never changes), with a
signed manifest. It gets its name when it is complete; what a crash leaves behind has a name that starts with a dot and
is removed at the next start. A snapshot that somebody leases (durable_files.leased) is never removed.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from knhk import __version__
from knhk.domain.errors import Conflict, KnhkError, StorageUnavailable
from knhk.domain.times import rfc3339
from knhk.persistence import head_witness
from knhk.persistence.blob_area import FOLDER
from knhk.persistence.rocksdb_errors import translated
from knhk.persistence.rocksdb_keys import FORMAT_VERSION
from knhk.persistence.sync import sync_path
from knhk.ports.environment import Clock, Signer
from knhk.ports.journal import Journal
from knhk.ports.storage import Storage
from knhk.recovery import manifest as manifests
from knhk.recovery.durable_files import digest_of, link_or_copy, taken
from knhk.recovery.manifest import FORMAT, Head, ListedFile, Manifest, files_of

_NAME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d{6}-\d{3}Z(-\d+)?")
MAKING: Final = ".making-"
_PRUNING: Final = ".pruning-"
_VISIBLE_S: Final = 30.0
_LOOK_AGAIN_S: Final = 0.01


class Snapshot(msgspec.Struct, frozen=True):
    """A complete snapshot."""

    path: Path
    manifest: Manifest

    @property
    def height(self) -> int:
        """The newest block of partition 0 in it, -1 if there is none."""
        return next((head.height for head in self.manifest.heads if head.partition == 0), -1)


class Digests:
    """SHA-256 of files that are written once: a file that was looked at before is not read again."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], str] = {}

    def of(self, path: Path) -> str:
        """The digest of a file."""
        key = _identity(path.stat())
        if key not in self._known:
            self._known[key] = digest_of(path)
        return self._known[key]

    def learn(self, snapshot: Snapshot) -> None:
        """Take over what the manifest says of the files that later snapshots will share."""
        for one in snapshot.manifest.files:
            try:
                status = (snapshot.path / one.path).stat()
            except OSError:
                continue
            if status.st_size == one.size:
                self._known[_identity(status)] = one.sha256

    def keep(self, directory: Path) -> None:
        """Forget everything but the files of this directory."""
        present = {_identity(path.stat()) for path in files_of(directory)}
        self._known = {key: digest for key, digest in self._known.items() if key in present}


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Snapshots:
    """The snapshots of one node."""

    def __init__(
        self,
        directory: Path,
        journal: Journal,
        storage: Storage,
        signer: Signer,
        clock: Clock,
        node_id: str,
        blobs: Path | None = None,
    ) -> None:
        """`blobs` is the blob area, if there is one."""
        self.directory, self._blobs = directory, blobs
        self._journal, self._storage, self._signer, self._clock = journal, storage, signer, clock
        self._node_id = node_id
        self._digests = Digests()
        self.turn = asyncio.Lock()
        """Held while a snapshot is being taken."""

    async def start(self) -> None:
        """Remove what a crash left behind, and learn what the newest snapshot knows."""
        await asyncio.to_thread(self._tidy)

    def _tidy(self) -> None:
        remove_leftovers(self.directory)
        for snapshot in listed(self.directory)[-1:]:
            self._digests.learn(snapshot)

    async def take(self) -> Snapshot:
        """A consistent snapshot of everything that is committed, while the writers go on.

        Raises DiskFull, StorageUnavailable or Corrupt; then nothing is left of it.
        """
        async with self.turn:
            at_ns = self._clock.now_ns()
            target = self.directory / name_of(at_ns)
            unfinished = self.directory / f"{MAKING}{target.name}"
            if target.exists() or unfinished.exists():
                raise Conflict(f"{target} exists already; a snapshot is written to a new directory")
            try:
                await asyncio.to_thread(remove_leftovers, self.directory)
                unfinished.mkdir(parents=True)
                with taken(unfinished):
                    copy = unfinished / "store"
                    # Before, so that what is erased meanwhile is there; after, so that what is new is.
                    await asyncio.to_thread(self._link_blobs, unfinished / FOLDER)
                    await self._storage.checkpoint(copy)
                    heads = await self._heads(copy)
                    await asyncio.to_thread(self._link_blobs, unfinished / FOLDER)
                    if (unfinished / FOLDER).exists():
                        (unfinished / FOLDER).rename(copy / FOLDER)
                    return await asyncio.to_thread(self._finish, copy, target, heads, at_ns)
            except OSError as error:
                raise translated(error, target, "writing the snapshot") from error
            finally:
                await asyncio.to_thread(shutil.rmtree, unfinished, True)

    def _link_blobs(self, target: Path) -> None:
        """Put the blobs into the snapshot: they are never changed, so hard links will do."""
        if self._blobs is None:
            return
        for path in (self._blobs / "data").glob("??/*"):
            link = target / "data" / path.parent.name / path.name
            with suppress(FileNotFoundError):  # it was removed meanwhile
                if not link.exists():
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(path, link)
        for folder in (target / "data").glob("??"):
            sync_path(folder)

    async def _heads(self, copy: Path) -> list[Head]:
        """The heads in the copy, from the journal: a block that was still being synced is waited for."""
        heads = []
        for partition, tip in (head_witness.read(copy) or {}).items():
            for _ in range(round(_VISIBLE_S / _LOOK_AGAIN_S)):
                if page := await self._journal.blocks(partition, tip.height, 1):
                    break
                await self._clock.sleep(_LOOK_AGAIN_S)
            else:
                raise StorageUnavailable(f"block {tip.height} of partition {partition} does not become durable")
            heads.append(Head.of(page[0]))
        return heads

    def _finish(self, copy: Path, target: Path, heads: list[Head], at_ns: int) -> Snapshot:
        """Write the manifest and give the snapshot its name.

        An empty log says nothing and is left out, because some S3 servers take a minute over an empty object.
        """
        for log in copy.glob("*.log"):
            if log.stat().st_size == 0:
                log.unlink()
        entries = [
            ListedFile(path.relative_to(copy).as_posix(), path.stat().st_size, self._digests.of(path))
            for path in files_of(copy)
        ]
        made = Manifest(FORMAT, FORMAT_VERSION, __version__, self._node_id, at_ns, heads, entries)
        manifests.write(copy, made, self._signer)
        self._digests.keep(copy)
        copy.rename(target)
        sync_path(target.parent)
        return Snapshot(target, made)

    async def prune(self, keep: int) -> list[Path]:
        """Remove the oldest snapshots so that `keep` are left; those that were removed. One in use stays."""
        return await asyncio.to_thread(prune, self.directory, keep)


def name_of(at_ns: int) -> str:
    """The name of the snapshot that was begun at this Unix time."""
    return rfc3339(at_ns).replace(":", "").replace(".", "-")


def listed(directory: Path) -> list[Snapshot]:
    """The complete snapshots below a directory, oldest first. One whose manifest is damaged is left out."""
    found = []
    for path in _named(directory):
        try:
            made = manifests.read(path)
        except KnhkError:
            continue
        if made is not None:
            found.append(Snapshot(path, made))
    return found


def prune(directory: Path, keep: int) -> list[Path]:
    """Remove the oldest snapshots below a directory so that `keep` are left, as far as nobody uses them."""
    snapshots = listed(directory)
    removed = []
    for snapshot in snapshots[: max(0, len(snapshots) - keep)]:
        with taken(snapshot.path) as free:
            if free:
                doomed = directory / f"{_PRUNING}{snapshot.path.name}"
                snapshot.path.rename(doomed)  # In one step, so that nobody takes half a snapshot for a whole one.
                shutil.rmtree(doomed, ignore_errors=True)
                removed.append(snapshot.path)
    return removed


def remove_leftovers(directory: Path) -> None:
    """Remove what interrupted snapshots and prunings left behind, unless another process is at work on it."""
    for path in _entries(directory):
        if path.name.startswith((MAKING, _PRUNING)):
            with taken(path) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)


def _named(directory: Path) -> Iterable[Path]:
    return (path for path in _entries(directory) if _NAME.fullmatch(path.name))


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []
