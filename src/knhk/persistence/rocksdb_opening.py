"""Opening a data directory: is it a store, of a version we know, whole, and as long as it was?

    nothing there            a new store is made
    journal.head, no CURRENT a store whose making was interrupted, if nothing is noted in journal.head; else damaged
    CURRENT                  a store: first read without changing anything, then opened for writing

RocksDB rewrites what it recovers while it opens. A damaged directory is therefore looked at read-only first, and is
left exactly as it was found when a check fails.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from knhk.domain.errors import Corrupt, InvalidConfiguration, JournalCorrupt, StorageUnavailable
from knhk.domain.receipt import SignedBlock
from knhk.persistence import head_witness
from knhk.persistence.block_rows import decode_signed_block
from knhk.persistence.fencing import Tip
from knhk.persistence.format_version import check_format, stored_format
from knhk.persistence.partition_directories import FOLDER as PARTITIONS
from knhk.persistence.rocksdb_database import Counters, Database, log_bytes, stored_families
from knhk.persistence.rocksdb_errors import translated
from knhk.persistence.rocksdb_keys import (
    BLOCK,
    FAMILIES,
    FIRST_FAMILIES,
    FORMAT_VERSION,
    MAX_NUMBER,
    block_key,
)
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.persistence.row_scan import partitions

# A block's row alone is longer than this, so that a log of n bytes holds fewer than n / LEAST_COMMIT_BYTES commits.
LEAST_COMMIT_BYTES: Final = 150
READ_ONLY_ATTEMPTS: Final = 5
READ_ONLY_PAUSE_S: Final = 0.05


def head(database: Database, partition: int) -> SignedBlock | None:
    """The partition's block of the greatest height."""
    for key, value in database.scan_back("blocks", block_key(partition, 0), block_key(partition, MAX_NUMBER)):
        return decode_signed_block(value, partition, BLOCK.unpack(key)[1])
    return None


def open_database(
    path: Path, options: StoreOptions, counters: Counters, *, read_only: bool
) -> tuple[Database, dict[int, Tip]]:
    """The opened database and the heads of its partitions.

    Raises DataDirectoryInUse, InvalidConfiguration (no store there), Unsupported (a newer format), JournalCorrupt,
    DiskFull or StorageUnavailable.
    """
    try:
        fresh = _is_fresh(path)
        if fresh and read_only:
            raise InvalidConfiguration(f"{path} is not a KNHK store: there is nothing in it")
        if fresh:
            path.mkdir(parents=True, exist_ok=True)
            head_witness.HeadWitness(path, {}).close()
            return _create(path, options, counters), {}
        if read_only:
            return _open_beside_a_writer(path, options, counters)
        _checked(path, options, counters, read_only=True)[0].close()
        return _checked(path, options, counters, read_only=False)
    except OSError as error:
        raise translated(error, path, "opening", opening=True) from error


def _is_fresh(path: Path) -> bool:
    """Whether a store may be made here. Raises JournalCorrupt or InvalidConfiguration if something else is there."""
    if not path.exists():
        return True
    if not path.is_dir():
        raise InvalidConfiguration(f"{path} is not a directory")
    names = {entry.name for entry in path.iterdir()}
    if not {name for name in names if not name.startswith(".") and name not in ("lost+found", PARTITIONS)}:
        return True
    noted = head_witness.read(path)
    if "CURRENT" in names:
        if noted is None:
            _refuse_foreign(path)
            raise head_witness.missing(path)
        return not noted and _is_half_made(path)
    if noted is None:
        raise InvalidConfiguration(f"{path} is not a KNHK store, and it is not empty: {', '.join(sorted(names)[:5])}")
    if noted:
        raise JournalCorrupt(f"{path} has lost RocksDB's file CURRENT")
    if any(name.endswith(".sst") for name in names):
        raise JournalCorrupt(f"{path} has lost RocksDB's file CURRENT, but not its data")
    return True


def _refuse_foreign(path: Path) -> None:
    if not set(FIRST_FAMILIES) <= stored_families(path):
        raise InvalidConfiguration(f"{path} holds a RocksDB database of something else")


def _is_half_made(path: Path) -> bool:
    """Whether the process died between making the database and the last of its column families."""
    return not set(FIRST_FAMILIES) <= stored_families(path)


def _create(path: Path, options: StoreOptions, counters: Counters) -> Database:
    database = Database(path, options, counters, create=True, read_only=False)
    try:
        check_format(database, path, writable=True, empty=True)
    except BaseException:
        database.close()
        raise
    return database


def _open_beside_a_writer(path: Path, options: StoreOptions, counters: Counters) -> tuple[Database, dict[int, Tip]]:
    """Read-only; a server may delete files while its directory is read, so that a failure counts when it stays."""
    for attempt in range(READ_ONLY_ATTEMPTS):
        try:
            return _checked(path, options, counters, read_only=True)
        except (Corrupt, StorageUnavailable):
            if attempt == READ_ONLY_ATTEMPTS - 1:
                raise
            time.sleep(READ_ONLY_PAUSE_S)
    raise AssertionError("unreachable")


def _checked(
    path: Path, options: StoreOptions, counters: Counters, *, read_only: bool
) -> tuple[Database, dict[int, Tip]]:
    """Open and check. The witness and the log's size are read first: a writer only ever makes the journal longer."""
    noted = head_witness.read(path)
    if noted is None:
        raise head_witness.missing(path)
    reach = log_bytes(path) // LEAST_COMMIT_BYTES + 2
    families = stored_families(path)
    _require(FIRST_FAMILIES, families, path)
    database = Database(path, options, counters, create=False, read_only=read_only)
    try:
        if stored_format(database) == FORMAT_VERSION:
            _require(FAMILIES, families, path)
        check_format(database, path, writable=not read_only, empty=not noted and not partitions(database))
        return database, _checked_heads(database, path, noted, reach)
    except BaseException:
        database.close()
        raise


def _require(names: Iterable[str], stored: set[str], path: Path) -> None:
    """Column families that are not there would be taken for empty ones. Raises JournalCorrupt."""
    lost = sorted(set(names) - stored)
    if lost:
        raise JournalCorrupt(f"{path} has lost {', '.join(lost)}: RocksDB's MANIFEST is damaged")


def _checked_heads(database: Database, path: Path, noted: dict[int, Tip], reach: int) -> dict[int, Tip]:
    """The heads. Raises JournalCorrupt if a partition ends before its witness, or if its newest blocks have a gap."""
    heads: dict[int, Tip] = {}
    for partition in partitions(database):
        newest = head(database, partition)
        assert newest is not None
        height = _check_contiguous(database, path, partition, reach)
        heads[partition] = Tip(height, newest.hash())
    for partition, tip in noted.items():
        found = heads.get(partition)
        if found is None or found.height < tip.height:
            first = 0 if found is None else found.height + 1
            raise JournalCorrupt(
                f"{path}: the journal of partition {partition} has lost its end: blocks {first} to {tip.height} were "
                f"acknowledged, noted in {head_witness.FILE_NAME}, and are not there"
            )
        raw = database.get("blocks", block_key(partition, tip.height))
        if raw is None or decode_signed_block(raw, partition, tip.height).hash() != tip.hash:
            raise JournalCorrupt(
                f"{path}: block {tip.height} of partition {partition} is not the one noted in {head_witness.FILE_NAME}"
            )
    return heads


def _check_contiguous(database: Database, path: Path, partition: int, reach: int) -> int:
    """The newest height; the `reach` blocks below it, all that can have come from the log, must be there."""
    newest = expected = -1
    rows = database.scan_back("blocks", block_key(partition, 0), block_key(partition, MAX_NUMBER))
    for (key, _), _ in zip(rows, range(reach), strict=False):
        height = BLOCK.unpack(key)[1]
        if newest < 0:
            newest = expected = height
        if height != expected:
            raise JournalCorrupt(
                f"{path}: the journal of partition {partition} has a gap: blocks {height + 1} to {expected} are missing"
            )
        expected -= 1
    if expected >= 0 and newest - expected < reach:
        raise JournalCorrupt(f"{path}: the journal of partition {partition} starts at block {expected + 1}, not at 0")
    return newest
