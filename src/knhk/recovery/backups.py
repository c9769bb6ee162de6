"""Backups in a place: what is there, and which one to begin a restore with.

A backup is a folder `<YYYYmmdd_HHMMSS>` with a snapshot in `data/`, as deploy/backup/knhk-backup.sh makes it too.
"""

import re
from pathlib import Path
from typing import Final

import msgspec

from knhk.domain.errors import BackupCorrupt, NotFound
from knhk.recovery import manifest as manifests
from knhk.recovery import snapshots
from knhk.recovery.manifest import MANIFEST_FILE, Manifest
from knhk.recovery.places import Place

NAME: Final = re.compile(r"\d{8}_\d{6}")


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


def newest(place: Place | None, checkpoints: Path | None, to_ns: int = 0) -> Backup | None:
    """The backup or local snapshot that goes furthest, but not beyond `to_ns` if that is given. None: there is none."""
    found = [] if place is None else listed(place)
    if checkpoints is not None:
        found += [Backup(str(one.path), one.path.name, one.manifest) for one in snapshots.listed(checkpoints)]
    usable = [one for one in found if one.manifest is not None and (not to_ns or one.until_ns <= to_ns)]
    return max(usable, key=lambda one: one.manifest.made_at_ns if one.manifest else 0, default=None)
