"""Files that survive a power cut, and digests of files: what snapshots, backups and restores share."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

from knhk.persistence.sync import sync_path

CHUNK_BYTES: Final = 1 << 20
_NOT_SUPPORTED: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF})


def write_durably(path: Path, raw: bytes) -> None:
    """Write a whole file: after a crash there is the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.partial")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_path(path.parent)


def link_or_copy(path: Path, target: Path) -> None:
    """The same file under another name, or a durable copy of it on another file system."""
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copyfile(path, target)
        sync_path(target)


def digest_of(path: Path, read: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hexadecimal; `read` is told about every piece, in bytes."""
    found = sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
            if read is not None:
                read(len(chunk))
    return found.hexdigest()


@contextmanager
def leased(directory: Path) -> Iterator[None]:
    """Use a directory that must not be removed meanwhile. Any number may use one; the lease ends with the process.

    `flock -s DIRECTORY COMMAND` takes the same lease. Raises OSError if there is no such directory.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def taken(directory: Path) -> Iterator[bool]:
    """Have a directory alone, to change or remove it; False if it is in use, or gone."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> None:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:  # a file system without locks: nobody can hold a lease there
            raise
