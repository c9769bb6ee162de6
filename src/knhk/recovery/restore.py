"""Restoring a data directory from a snapshot or backup, offline, beside the old one.

    1  copy     into `<data>.recovering`, every file checked against the signed manifest on the way
    2  replay   segments of the journal that were shipped later (replay.py), if there are any
    3  verify   every receipt, chain, block, signature and payload of the new directory
    4  switch   the old directory gets the name `<data>.before-<time>`, the new one the old one's name

Until 4 the old directory is not touched, and it is never deleted. A restore that dies is repeated with the same command
and goes on where it was; `<data>.recovery.json` remembers which one it was. No server can start between the two
renamings of 4, since `refuse_unfinished` finds that file. A directory without a manifest (a copy of a data directory,
made by rsync) is taken only if every byte of it verifies, and the result says that nobody signed it.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from knhk.domain.errors import (
    BackupCorrupt,
    Corrupt,
    DataDirectoryInUse,
    InvalidParameter,
    NotFound,
)
from knhk.domain.times import rfc3339
from knhk.persistence.partition_directories import FOLDER as PARTITIONS
from knhk.persistence.rocksdb_errors import translated
from knhk.persistence.scanner import Progress
from knhk.persistence.sync import sync_path
from knhk.persistence.verification import CheckSignature
from knhk.ports.environment import PublicKey
from knhk.recovery import manifest as manifests
from knhk.recovery.durable_files import CHUNK_BYTES, digest_of, leased, taken, write_durably
from knhk.recovery.manifest import MANIFEST_FILE, SIGNATURE_FILE, ListedFile, Manifest, files_of
from knhk.recovery.places import Place

_COPYING: Final = "copying"
_REPLAYING: Final = "replaying"
_SWITCHING: Final = "switching"
_BEGIN_ANEW: Final = (
    "Remove it and restore again. If the data directory is gone, the old data are beside it, in the newest "
    "`<data directory>.before-<time>`."
)


class Source(msgspec.Struct, frozen=True):
    """A snapshot that can be restored: its place, the folder of its files there, and its manifest if it has one."""

    place: Place
    folder: str
    manifest: Manifest | None
    signer: PublicKey | None

    @property
    def name(self) -> str:
        return f"{self.place}/{self.folder}".rstrip("/")

    @property
    def directory(self) -> Path | None:
        """The directory of its files, if it is not in a bucket."""
        return None if self.place.root is None else self.place.root / self.folder


class Unfinished(msgspec.Struct):
    """What `<data>.recovery.json` says of a restore that is under way; and, in its last line, a SHA-256 over that."""

    source: str
    phase: str
    kept: str = ""

    def encode(self) -> bytes:
        """The file's bytes."""
        raw = msgspec.json.encode(self)
        return raw + b"\n" + sha256(raw).hexdigest().encode()

    @classmethod
    def decode(cls, raw: bytes) -> "Unfinished":
        """From the file's bytes. Raises ValueError if they are not what was written."""
        said, _, digest = raw.partition(b"\n")
        if sha256(said).hexdigest().encode() != digest:
            raise ValueError("its SHA-256 differs")
        return msgspec.json.decode(said, type=cls)


def find(url: str, pinned: list[PublicKey] | None, check: CheckSignature) -> Source:
    """The snapshot at a path or URL: its own directory, or one with the files in `data/`, as backups have them.

    Raises NotFound if there is none, BackupCorrupt if its manifest is not what was signed.
    """
    place = Place.of(url)
    for folder in ("", "data"):
        prefix = f"{folder}/" if folder else ""
        if place.has(f"{prefix}CURRENT") or place.has(f"{prefix}{MANIFEST_FILE}"):
            return _source(place, folder, prefix, pinned, check)
    inside = place.folders()
    hint = f"There are {', '.join(inside[-3:])} in it: name one of them." if inside else "See `knhk backup list`."
    raise NotFound(f"{url} is not a snapshot: neither it nor data/ in it has a file CURRENT", hint=hint)


def _source(place: Place, folder: str, prefix: str, pinned: list[PublicKey] | None, check: CheckSignature) -> Source:
    name = f"{place}/{prefix}{MANIFEST_FILE}"
    try:
        raw = place.read(f"{prefix}{MANIFEST_FILE}")
    except NotFound:
        if pinned:
            raise BackupCorrupt(f"{name} is missing, so that no trusted key vouches for this backup") from None
        return Source(place, folder, None, None)
    manifest = manifests.decode(raw, name)
    try:
        signature = place.read(f"{prefix}{SIGNATURE_FILE}")
    except NotFound as error:
        raise BackupCorrupt(f"{name} is not signed: {SIGNATURE_FILE} is missing") from error
    keys = None if pinned is None else {key.key_id: key for key in pinned}
    if objection := manifests.objection(raw, signature, keys, check):
        raise BackupCorrupt(f"{name}: {objection}")
    return Source(place, folder, manifest, manifests.signer_of(signature))


@contextmanager
def offline(data: Path) -> Iterator[None]:
    """Keep servers away from a data directory, all partitions of it. Raises DataDirectoryInUse if one has it."""
    with ExitStack() as locks:
        for directory in (data, *sorted((data / PARTITIONS).glob("[0-9]*"))):
            if (directory / "LOCK").exists():
                locks.enter_context(_locked(directory))
        yield


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    lock = data / "LOCK"
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as RocksDB does
        except OSError as error:
            raise DataDirectoryInUse(
                f"{data} is held by a server", hint="Stop it first: systemctl stop knhk."
            ) from error
        yield
    finally:
        os.close(descriptor)


def refuse_unfinished(data: Path) -> None:
    """Raise Corrupt if a restore was interrupted after taking the old directory away and before putting the new one."""
    if data.exists() and not (_staging(data) / PARTITIONS).exists():
        return
    unfinished = _remembered(data)
    if unfinished is not None and unfinished.phase == _SWITCHING:
        raise Corrupt(
            f"a restore of {data} from {unfinished.source} was interrupted in its last step",
            hint="Run the same `knhk recover` again; it goes on where it was.",
        )


class Staging:
    """The new directory while it is made. `data` is the one that it will replace."""

    def __init__(self, data: Path, sources: Mapping[str, Source], name: str, *, whole: bool = False) -> None:
        """`sources` by the folder of the data directory that each is restored to; "" for the directory itself.

        `whole`: what the old one has in `partitions/` stays behind with it; else it goes on as it is.
        """
        self.data, self._sources, self._whole = data, sources, whole
        self.path = _staging(data)
        self._marker = _marker(data)
        self._state = Unfinished(name, _COPYING)

    @contextmanager
    def opened(self) -> Iterator["Staging"]:
        """Begin, or go on with an interrupted restore of the same source; what another one left behind is removed."""
        before = _remembered(self.data)
        same = before is not None and before.source == self._state.source
        if before is not None and same:
            self._state = before
        try:
            if not same:
                shutil.rmtree(self.path, ignore_errors=True)
            if not self.is_switching:
                self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._remember()
            with taken(self.path) as alone:
                if not alone and self.path.exists():
                    raise DataDirectoryInUse(
                        f"another restore is at work in {self.path}", hint="Wait until it is done."
                    )
                yield self
        except OSError as error:
            raise translated(error, self.path, "restoring") from error

    @property
    def is_switching(self) -> bool:
        """Whether all that is left to do is the last step."""
        return self._state.phase == _SWITCHING

    def copy(self, progress: Progress) -> None:
        """Copy the files of the snapshot. A file that is there already and good is not copied again.

        Raises BackupCorrupt, naming the file, if one is not what the manifest says.
        """
        if self._state.phase != _COPYING:
            return
        self._copy(progress)
        self._state.phase = _REPLAYING
        self._remember()

    def _copy(self, progress: Progress) -> None:
        wanted = {
            (Path(folder) / entry.path).as_posix(): (source, entry)
            for folder, source in self._sources.items()
            for entry in _entries(source)
        }
        done, total = 0, sum(entry.size for _, entry in wanted.values())

        def copied(count: int) -> None:
            nonlocal done
            done += count
            progress("copy", done, total)

        with ExitStack() as leases:
            for directory in {source.directory for source in self._sources.values()}:
                if directory is not None:
                    leases.enter_context(leased(directory))
            for name, (source, entry) in wanted.items():
                self._copy_file(source, entry, self.path / name, copied)
        for path in files_of(self.path):  # of an interrupted restore whose source has changed since
            if path.relative_to(self.path).as_posix() not in wanted:
                path.unlink()
        for folder, _, _ in os.walk(self.path):
            sync_path(Path(folder))

    def _copy_file(self, source: Source, entry: ListedFile, target: Path, copied: Callable[[int], None]) -> None:
        if entry.sha256 and target.exists() and digest_of(target) == entry.sha256:
            copied(entry.size)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        name = f"{source.folder}/{entry.path}" if source.folder else entry.path
        found, size = sha256(), 0
        try:
            with target.open("wb") as file:
                for piece in _pieces(source, name):
                    file.write(piece)
                    found.update(piece)
                    size += len(piece)
                    copied(len(piece))
                file.flush()
                os.fsync(file.fileno())
        except NotFound as error:
            raise BackupCorrupt(f"{source.name}: {entry.path} is missing") from error
        if size != entry.size or (entry.sha256 and found.hexdigest() != entry.sha256):
            target.unlink()
            was = f"it has {size} bytes instead of {entry.size}" if size != entry.size else "its SHA-256 differs"
            raise BackupCorrupt(f"{source.name}: {entry.path} is not what the manifest says: {was}")

    def switch(self, now_ns: int) -> Path | None:
        """Put the new directory in the old one's place; where the old one is now, None if there was none."""
        state = self._state
        if not self.is_switching:
            kept = self.data.with_name(f"{self.data.name}.before-{rfc3339(now_ns).replace(':', '').replace('.', '-')}")
            state.phase, state.kept = _SWITCHING, str(kept) if self.data.exists() else ""
            self._remember()
        kept_at = Path(state.kept) if state.kept else None
        try:
            if kept_at is not None and not kept_at.exists():
                if (
                    not self._whole and (self.data / PARTITIONS).exists()
                ):  # those that are not restored; see refuse_unfinished
                    (self.data / PARTITIONS).rename(self.path / PARTITIONS)
                self.data.rename(kept_at)
            if self.path.exists():
                self.path.rename(self.data)
            sync_path(self.data.parent)
            self._marker.unlink()
            sync_path(self.data.parent)
        except OSError as error:
            raise InvalidParameter(
                f"{self.data} cannot be replaced: {error.strerror}",
                hint=f"If it is a mount point, put the data directory below it. The restored data are in {self.path}.",
            ) from error
        return kept_at

    def discard(self) -> None:
        """Give up: remove what was made of the new directory. The old one is as it was."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._marker.unlink(missing_ok=True)

    def _remember(self) -> None:
        write_durably(self._marker, self._state.encode())


def _entries(source: Source) -> list[ListedFile]:
    """What to copy. Without a manifest there are no digests to compare with."""
    if source.manifest is not None:
        return source.manifest.files
    prefix = f"{source.folder}/" if source.folder else ""
    found = [
        ListedFile(one.name.removeprefix(prefix), one.size, "")
        for one in source.place.entries(source.folder)
        if manifests.is_content(one.name.rpartition("/")[2])
        and not one.name.removeprefix(prefix).startswith(f"{PARTITIONS}/")
    ]
    return sorted(found, key=lambda one: one.path)


def _pieces(source: Source, name: str) -> Iterator[bytes]:
    if source.place.root is None:
        yield from source.place.stream(name)
        return
    try:
        with (source.place.root / name).open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece
    except FileNotFoundError as error:
        raise NotFound(str(error)) from error


def _staging(data: Path) -> Path:
    return data.with_name(f"{data.name}.recovering")


def _marker(data: Path) -> Path:
    return data.with_name(f"{data.name}.recovery.json")


def _remembered(data: Path) -> Unfinished | None:
    try:
        return Unfinished.decode(_marker(data).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Corrupt(f"{_marker(data)} cannot be read: {error}", hint=_BEGIN_ANEW) from error
