"""Histories: which of the journals that were ever shipped to a place follows which.

A data directory that was restored to an earlier state goes on differently from there than the one before. So that the
segments of both can lie in one place, each line of events has a name, its history, and a document

    histories/<history>.json    {"history", "parent", "started_at_ns", "node_id", "heads": {"0": [height, block hash]}}

where `heads` is how far the parent's blocks belong to it too. A new journal has no parent.
"""

from typing import Final

import msgspec

from knhk.domain.errors import BackupCorrupt, NotFound
from knhk.persistence.verification import UNDECODABLE
from knhk.recovery.places import Place

_FOLDER: Final = "histories"
_DEEPEST: Final = 1000


class History(msgspec.Struct, frozen=True):
    """One line of events. `heads` has height and block hash (hexadecimal) of the last inherited block, by partition."""

    history: str
    parent: str
    started_at_ns: int
    node_id: str
    heads: dict[str, tuple[int, str]]

    def inherited(self, partition: int) -> int:
        """The last height of a partition that is the parent's, -1 if none is."""
        return self.heads.get(str(partition), (-1, ""))[0]


def write(place: Place, history: History) -> None:
    """Keep the document of a history."""
    place.put(f"{_FOLDER}/{history.history}.json", msgspec.json.encode(history))


def read(place: Place, name: str) -> History:
    """The document of a history. Raises NotFound, BackupCorrupt."""
    path = f"{_FOLDER}/{name}.json"
    try:
        return msgspec.json.decode(place.read(path), type=History)
    except UNDECODABLE as error:
        raise BackupCorrupt(f"{place}/{path} cannot be read: {error}") from error


def newest(place: Place, to_ns: int = 0) -> History | None:
    """The history that began last, at `to_ns` at the latest if that is given; None if there is none."""
    names = [one.name.rpartition("/")[2].removesuffix(".json") for one in place.entries(_FOLDER)]
    found = [read(place, name) for name in names]
    known = [one for one in found if not to_ns or one.started_at_ns <= to_ns] or found
    return max(known, key=lambda one: one.started_at_ns, default=None)


def line(place: Place, name: str) -> list[History]:
    """A history and its ancestors, the oldest first. Raises NotFound if one of them is missing."""
    found: list[History] = []
    while name:
        try:
            found.append(read(place, name))
        except NotFound as error:
            raise NotFound(f"{place}: history {name} is missing") from error
        if len(found) > _DEEPEST:
            raise BackupCorrupt(f"{place}: the histories name each other in a circle")
        name = found[-1].parent
    return found[::-1]
