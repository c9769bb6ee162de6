"""The version of the on-disk format: noted in a new store, migrated forward in an older one, refused in a newer one.

    meta 'format'   version, 2 bytes
    meta 'writer'   the KNHK version that gave the directory this format, text; format 1 had none

A step of `MIGRATIONS` turns a format into the next one. Its rows, the version and the writer are one synced batch, so
that a process which dies on the way leaves either format whole, and the next start does the rest. Column families that
a later format added are made by the opening itself and are empty in an older one. A directory that is opened for
reading only is read as it is: every version reads all formats up to its own.

Format 2 permits rows that begin with 0xc1 (sealed_rows.py): encrypted ones, and those of pruned runs.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from rocksdict import WriteBatch

from knhk import __version__
from knhk.domain.errors import JournalCorrupt, Unsupported
from knhk.persistence.rocksdb_database import Database
from knhk.persistence.rocksdb_keys import FORMAT_KEY, FORMAT_VERSION, WRITER_KEY

Migration = Callable[[Database, WriteBatch], None]


def _nothing_to_rewrite(_database: Database, _batch: WriteBatch) -> None:
    """Every row of format 1 is a row of format 2."""


MIGRATIONS: Final[Mapping[int, Migration]] = {1: _nothing_to_rewrite}
"""The step from each older format to the one after it."""


def stored_format(database: Database) -> int | None:
    """The format that the directory says it has; None if it says nothing."""
    stored = database.get("meta", FORMAT_KEY)
    return None if stored is None else int.from_bytes(stored, "big")


def check_format(database: Database, path: Path, *, writable: bool, empty: bool) -> None:
    """Note the format of a new store, or migrate that of an older one, if it may be written.

    Raises Unsupported for a newer format, and JournalCorrupt if a store that is not empty does not say which it has.
    """
    version = stored_format(database)
    if version is None:
        if not empty:
            raise JournalCorrupt(f"{path} does not say which version of the format it has")
        version = FORMAT_VERSION
        if writable:
            _note(database, WriteBatch(raw_mode=True), version)
    if version > FORMAT_VERSION:
        raise _newer(database, path, version)
    while writable and version < FORMAT_VERSION:
        batch = WriteBatch(raw_mode=True)
        MIGRATIONS[version](database, batch)
        version += 1
        _note(database, batch, version)


def _note(database: Database, batch: WriteBatch, version: int) -> None:
    batch.put(FORMAT_KEY, version.to_bytes(2, "big"), database.handles["meta"])
    batch.put(WRITER_KEY, __version__.encode(), database.handles["meta"])
    database.write(batch)
    database.sync()


def _newer(database: Database, path: Path, version: int) -> Unsupported:
    writer = (database.get("meta", WRITER_KEY) or b"").decode(errors="replace")
    able = f"KNHK {writer} or newer" if writer else "the version that wrote it"
    return Unsupported(
        f"{path} has format {version}, which {able} reads; this one, KNHK {__version__}, reads up to {FORMAT_VERSION}",
        hint=f"Start {able}, or restore a backup that this version made.",
    )
