"""Snapshots of all partitions of a data directory: one directory, and one signed manifest over all of it.

    snapshot.json       lists the files of all, and where the journal of each partition ends
    ...                 the files of partition 0
    partitions/N/...    those of partition N, as a data directory has them

Each partition is consistent in itself, as a snapshot of it is; they were taken one after the other. `compose` makes one
of the snapshots of the partitions, by hard links; `split` gives what a restore of each partition needs of it.
"""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from knhk import __version__
from knhk.domain.errors import Conflict, NotFound
from knhk.persistence.partition_directories import FOLDER, directory_of
from knhk.persistence.rocksdb_errors import translated
from knhk.persistence.sync import sync_path
from knhk.ports.environment import Signer
from knhk.recovery import manifest as manifests
from knhk.recovery.durable_files import leased, link_or_copy, taken
from knhk.recovery.manifest import FORMAT, MANIFEST_FILE, ListedFile, Manifest
from knhk.recovery.restore import Source
from knhk.recovery.snapshots import MAKING, Snapshot, name_of

OF_ALL: Final = "all"
"""Where such snapshots are below `recovery.checkpoint_path`."""


def compose(parts: Mapping[int, Path], directory: Path, signer: Signer, node_id: str, at_ns: int) -> Snapshot:
    """Make one snapshot, below `directory`, of the snapshots of the partitions. `at_ns` is Unix time.

    Raises NotFound if one of them is gone, DiskFull or StorageUnavailable; then nothing is left of it.
    """
    target = directory / name_of(at_ns)
    unfinished = directory / f"{MAKING}{target.name}"
    if target.exists() or unfinished.exists():
        raise Conflict(f"{target} exists already; a snapshot is written to a new directory")
    try:
        unfinished.mkdir(parents=True)
        with taken(unfinished), ExitStack() as leases:
            copy = unfinished / "store"
            found = {}
            for partition, path in sorted(parts.items()):
                leases.enter_context(leased(path))
                manifest = manifests.read(path)
                if manifest is None:
                    raise NotFound(f"{path} is not a snapshot: it has no {MANIFEST_FILE}")
                found[partition] = manifest
                _link(path, directory_of(copy, partition), manifest)
            made = Manifest(
                FORMAT,
                max(one.store_format for one in found.values()),
                __version__,
                node_id,
                at_ns,
                [head for one in found.values() for head in one.heads],
                [
                    msgspec.structs.replace(one, path=f"{folder_of(partition)}{one.path}")
                    for partition, manifest in found.items()
                    for one in manifest.files
                ],
            )
            manifests.write(copy, made, signer)
            copy.rename(target)
            sync_path(directory)
            return Snapshot(target, made)
    except OSError as error:
        raise translated(error, target, "writing the snapshot") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _link(path: Path, target: Path, manifest: Manifest) -> None:
    folders = {target}
    target.mkdir(parents=True)
    for one in manifest.files:
        link = target / one.path
        link.parent.mkdir(parents=True, exist_ok=True)
        folders.add(link.parent)
        link_or_copy(path / one.path, link)
    for folder in folders:
        sync_path(folder)


def folder_of(partition: int) -> str:
    """What the names of a partition's files begin with."""
    return f"{FOLDER}/{partition}/" if partition else ""


def partition_of(name: str) -> int:
    """The partition that a file belongs to."""
    first, _, rest = name.partition("/")
    number = rest.partition("/")[0]
    return int(number) if first == FOLDER and number.isdecimal() else 0


def split(source: Source) -> dict[int, Source]:
    """The snapshot of each partition that is in a snapshot or backup, by partition; of a single one, 0: that itself."""
    manifest = source.manifest
    prefix = f"{source.folder}/" if source.folder else ""
    if manifest is None:
        numbers = {int(one) for one in source.place.folders(f"{prefix}{FOLDER}") if one.isdecimal()}
        found: dict[int, Manifest | None] = dict.fromkeys((0, *sorted(numbers)))
    else:
        found = {one: _of(manifest, one) for one in sorted({0, *(partition_of(file.path) for file in manifest.files)})}
    if len(found) == 1:
        return {0: source}
    return {
        one: msgspec.structs.replace(source, folder=f"{prefix}{folder_of(one)}".rstrip("/"), manifest=part)
        for one, part in found.items()
    }


def _of(manifest: Manifest, partition: int) -> Manifest:
    prefix = folder_of(partition)
    return msgspec.structs.replace(
        manifest,
        heads=[head for head in manifest.heads if head.partition == partition],
        files=[
            ListedFile(one.path.removeprefix(prefix), one.size, one.sha256)
            for one in manifest.files
            if partition_of(one.path) == partition
        ],
    )
