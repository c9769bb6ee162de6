"""Where the partitions of a data directory are. Each is a store of its own, with all that belongs to one.

DATA                    partition 0, as in every version
DATA/partitions/N       partition N, from when more than one process worked on it

Partitions are never removed: they hold runs. Whoever opens DATA must therefore see to all of them.
"""

from pathlib import Path
from typing import Final

from knhk.domain.errors import JournalCorrupt

FOLDER: Final = "partitions"


def directory_of(data: Path, partition: int) -> Path:
    """The directory of a partition."""
    return data / FOLDER / str(partition) if partition else data


def neighbours_of(directory: Path, partition: int) -> list[Path]:
    """The directories of the other partitions there are, given that of one."""
    data = directory.parent.parent if partition else directory
    folder = data / FOLDER
    found = {int(one.name) for one in folder.iterdir() if one.name.isdecimal()} if folder.is_dir() else set()
    return [directory_of(data, one) for one in sorted({0, *found} - {partition})]


def partitions_in(data: Path) -> int:
    """How many partitions a data directory has; 1 if there is none yet.

    Raises JournalCorrupt if one of them is missing: what was acknowledged in it would be gone.
    """
    folder = data / FOLDER
    found = {int(one.name) for one in folder.iterdir() if one.name.isdecimal()} if folder.is_dir() else set()
    missing = set(range(1, max(found, default=0))) - found
    if missing:
        raise JournalCorrupt(f"{folder} has lost {', '.join(map(str, sorted(missing)))}: partitions are never removed")
    return max(found, default=0) + 1
