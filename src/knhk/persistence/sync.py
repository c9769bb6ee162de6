"""Making durable what was written: what the store, the blob area, snapshots, backups and restores share."""

import os
from pathlib import Path


def sync_path(path: Path) -> None:
    """Make a file's contents, or a directory's entries, durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
