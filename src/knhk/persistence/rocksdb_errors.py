"""What RocksDB's errors mean. rocksdict raises a plain Exception with RocksDB's status as text, which is matched."""

from pathlib import Path

from rocksdict import DbClosedError

from knhk.domain.errors import DataDirectoryInUse, DiskFull, JournalCorrupt, KnhkError, StorageUnavailable


class Stalled(StorageUnavailable):
    """RocksDB would have made the writer wait; nothing was written. The store waits itself and repeats the write."""


def translated(error: BaseException, path: Path, doing: str, *, opening: bool = False) -> KnhkError:
    """The KNHK error for one of RocksDB's; `doing` is what was tried, for the message.

    At opening, anything but trouble with the machine means that the files are not what RocksDB wrote.
    """
    if isinstance(error, KnhkError):
        return error
    text = str(error)
    where = f"{path}: {doing}: {text}"
    if "No space left" in text or "Disk quota exceeded" in text:
        return DiskFull(where)
    if "Write stall" in text:
        return Stalled(where)
    if "/LOCK:" in text and ("lock hold" in text or "While lock file" in text):
        return DataDirectoryInUse(f"{path} is held by another store: {text}")
    if isinstance(error, DbClosedError):
        return StorageUnavailable(where)
    if text.startswith("Corruption") or "checksum mismatch" in text:
        return JournalCorrupt(where)
    missing = "No such file" in text
    if opening and (missing or not (text.startswith("IO error") or isinstance(error, OSError))):
        return JournalCorrupt(where)
    return StorageUnavailable(where)
