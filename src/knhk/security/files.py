"""Files that hold keys: replaced as a whole, durable, for their owner alone, and the old bytes overwritten."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def write_private(path: Path, raw: bytes) -> None:
    """Replace a file so that a crash leaves the old one or the new one, and nobody else can ever read either.

    What stood there before is overwritten with zeros, so that a key that was taken out is not left on the disk. File
    systems that copy on write, and flash, may keep it all the same. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    old = None
    with contextlib.suppress(FileNotFoundError):
        old = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    temporary.rename(path)
    sync_directory(path.parent)
    if old is not None:
        try:
            os.pwrite(old, bytes(os.fstat(old).st_size), 0)
            os.fsync(old)
        finally:
            os.close(old)


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keep other processes out that do the same, until the end of the block or of the process. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
