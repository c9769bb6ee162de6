"""Checkpoints: a consistent copy of the store in a new directory, of hard links where the file system has them."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from knhk.domain.errors import Conflict
from knhk.persistence.fencing import Tip
from knhk.persistence.head_witness import HeadWitness
from knhk.persistence.rocksdb_database import Counters, Database
from knhk.persistence.rocksdb_errors import translated
from knhk.persistence.rocksdb_opening import open_database
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.persistence.sync import sync_path


def write_checkpoint(database: Database, target: Path, heads: dict[int, Tip], options: StoreOptions) -> int:
    """Copy everything written so far to `target`; the height of partition 0 in it (-1: no block).

    `heads` are those synced before the call, which the copy must contain. Raises as `publish` does.
    """

    def fill(copy: Path) -> dict[int, Tip]:
        database.flush()
        database.checkpoint(copy)
        return heads

    return publish(target, options, fill)


def publish(target: Path, options: StoreOptions, fill: Callable[[Path], dict[int, Tip]]) -> int:
    """Let `fill` make a store in a directory and say which heads it must contain; the height of partition 0 in it.

    It is opened and checked before it gets its name. A checkpoint that fails leaves nothing behind. Raises Conflict,
    DiskFull, StorageUnavailable, Corrupt.
    """
    if target.exists():
        raise Conflict(f"{target} exists already; a checkpoint is written to a new directory")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            copy = unfinished / "store"
            HeadWitness(copy, fill(copy)).close()
            opened, found = open_database(copy, options, Counters(), read_only=True)
            opened.close()
            HeadWitness(copy, found).close()  # It may hold commits that were being synced: it must not lose them again.
            _sync_directory(copy)
            copy.rename(target)
            sync_path(target.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise translated(error, target, "writing the checkpoint") from error
    return found[0].height if 0 in found else -1


def _sync_directory(directory: Path) -> None:
    for entry in directory.iterdir():
        sync_path(entry)
    sync_path(directory)
