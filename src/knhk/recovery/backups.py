"""Backups in a place: made of snapshots, listed, verified, pruned.

A backup is a folder `<YYYYmmdd_HHMMSS>` with a snapshot in `data/`, as deploy/backup/knhk-backup.sh makes it too. Its
manifest is written last: a folder without one is no backup.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from knhk.domain.errors import BackupCorrupt, BackupUnavailable, NotFound
from knhk.domain.units import DAY
from knhk.persistence.scanner import Progress
from knhk.recovery import manifest as manifests
from knhk.recovery.durable_files import digest_of, leased
from knhk.recovery.manifest import MANIFEST_FILE, SIGNATURE_FILE, Manifest
from knhk.recovery.places import Entry, Place
from knhk.recovery.restore import Source

NAME: Final = re.compile(r"\d{8}_\d{6}")
NAME_FORMAT: Final = "%Y%m%d_%H%M%S"
OWN: Final = "partition-"
"""What the folders begin with in which further partitions have what is their own; that of partition 0 is outside."""


class Backup(msgspec.Struct, frozen=True):
    """A backup or snapshot. `manifest` is None, and `fault` says why, if it cannot be restored."""

    url: str
    name: str
    manifest: Manifest | None
    fault: str = ""

    @property
    def until_ns(self) -> int:
        """Time of the newest block in it, 0 if there is none."""
        heads = [] if self.manifest is None else self.manifest.heads
        return max((head.at_ns for head in heads), default=0)

    @property
    def receipts(self) -> int:
        return 0 if self.manifest is None else sum(head.receipts for head in self.manifest.heads)


def own_name(partition: int) -> str:
    """The folder of a further partition."""
    return f"{OWN}{partition}"


def own_place(url: str, partition: int) -> str:
    """Where a further partition has its own below a directory or URL; "" if that is empty."""
    return f"{url.rstrip('/')}/{own_name(partition)}" if url else ""


def create(snapshot: Path, place: Place, name: str, progress: Progress) -> Backup:
    """Copy a snapshot to `name` in a place, and read every file back.

    Raises BackupCorrupt if the snapshot is not what its manifest says, BackupUnavailable if the place does not keep it.
    """
    with leased(snapshot):
        manifest = manifests.read(snapshot)
        if manifest is None:
            raise NotFound(f"{snapshot} is not a snapshot: it has no {MANIFEST_FILE}")
        done, total = 0, 2 * manifest.size_bytes
        for one in manifest.files:
            target = f"{name}/data/{one.path}"
            if digest_of(snapshot / one.path) != one.sha256:
                raise BackupCorrupt(f"{snapshot}: {one.path} is not what the manifest says")
            place.put(target, snapshot / one.path)
            done += one.size
            progress("copy", done, total)
            _require_arrived(place, target, one.sha256)
            done += one.size
            progress("copy", done, total)
        for last in (SIGNATURE_FILE, MANIFEST_FILE):
            place.put(f"{name}/data/{last}", snapshot / last)
            _require_arrived(place, f"{name}/data/{last}", digest_of(snapshot / last))
    return Backup(f"{place}/{name}", name, manifest)


def _require_arrived(place: Place, name: str, sha256: str) -> None:
    try:
        arrived = _digest(place, name)
    except NotFound as error:
        raise BackupUnavailable(f"{place} said that it has {name}, and does not have it") from error
    if arrived != sha256:
        raise BackupUnavailable(f"{place} said that it has {name}, and has something else there")


def _digest(place: Place, name: str) -> str:
    found = sha256()
    for piece in place.stream(name):
        found.update(piece)
    return found.hexdigest()


def faults(source: Source, progress: Progress) -> Iterator[str]:
    """What is wrong with the files of a backup, one sentence each, naming the file."""
    manifest = source.manifest
    if manifest is None:
        yield f"{MANIFEST_FILE} is missing: it is incomplete, or a copy of a data directory"
        return
    folder = f"{source.folder}/" if source.folder else ""
    done = 0
    listed_files = {one.path for one in manifest.files}
    for one in manifest.files:
        try:
            if _digest(source.place, folder + one.path) != one.sha256:
                yield f"{one.path} is not what the manifest says: its SHA-256 differs"
        except NotFound:
            yield f"{one.path} is missing"
        done += one.size
        progress("files", done, manifest.size_bytes)
    for entry in source.place.entries(source.folder):
        path = entry.name.removeprefix(folder)
        if path not in listed_files and manifests.is_content(path):
            yield f"{path} is not in the manifest"


class Pruned(msgspec.Struct, frozen=True):
    """What was removed."""

    backups: list[str]
    segments: int


def prune(place: Place, now_ns: int, keep_ns: int) -> Pruned:
    """Remove what is older than `keep_ns`: backups, but never the newest good one, and segments that no backup needs.

    A restore begins with a backup that is kept, so segments that were there a day before the oldest of them was made
    are not needed; the last one of each line of events stays, since shipping looks for it.
    """
    found = listed(place)
    newest_good = max((one.name for one in found if one.manifest is not None), default="")
    old = [one for one in found if one.name != newest_good and made_ns(one) < now_ns - keep_ns]
    for one in old:
        # The manifest first, so that what is left by an interruption is no backup.
        names = sorted((entry.name for entry in place.entries(one.name)), key=lambda name: not name.endswith(".json"))
        place.delete(names[:1])
        place.delete(names[1:])
        place.remove_folder(one.name)
    kept = [one.manifest.made_at_ns for one in found if one.manifest is not None and one not in old]
    removed = _prune_segments(place, min(kept) - DAY) if kept else 0
    return Pruned([one.name for one in old], removed)


def _prune_segments(place: Place, before_ns: int) -> int:
    by_folder: dict[str, list[Entry]] = {}
    shipped = ["segments", *(f"{one}/segments" for one in place.folders() if one.startswith(OWN))]
    for entry in (entry for folder in shipped for entry in place.entries(folder)):
        by_folder.setdefault(entry.name.rpartition("/")[0], []).append(entry)
    old = [
        entry.name for entries in by_folder.values() for entry in sorted(entries)[:-1] if entry.modified_ns < before_ns
    ]
    place.delete(old)
    return len(old)


def made_ns(backup: Backup) -> int:
    """When a backup was made: Unix time in ns, by its manifest, or else by its name (UTC)."""
    if backup.manifest is not None:
        return backup.manifest.made_at_ns
    return round(datetime.strptime(backup.name, NAME_FORMAT).replace(tzinfo=UTC).timestamp() * 1e9)


def listed(place: Place) -> list[Backup]:
    """The backups in a place, oldest first; of each, the manifest alone was read."""
    return [_backup(place, name) for name in place.folders() if NAME.fullmatch(name)]


def _backup(place: Place, name: str) -> Backup:
    url = f"{place}/{name}"
    try:
        raw = place.read(f"{name}/data/{MANIFEST_FILE}")
        return Backup(url, name, manifests.decode(raw, f"{url}/data/{MANIFEST_FILE}"))
    except NotFound:
        return Backup(url, name, None, "it has no manifest: it is incomplete, or a copy of a data directory")
    except BackupCorrupt as error:
        return Backup(url, name, None, error.message)
