"""Who may ship to a place: of all owners that a partition ever had, the one with the greatest epoch.

    owners/<epoch, 16 digits>.json    {"epoch", "node_id", "at_ns"}

A node that takes a partition over claims its place first, and reads what was shipped afterwards. An owner looks before
and after everything that it ships. So whatever an owner counted as shipped is seen by the next one, and an owner that
was taken for lost, and comes back, finds that it is not the owner any more.
"""

from typing import Final

import msgspec

from knhk.domain.errors import BackupCorrupt, Fenced
from knhk.domain.times import rfc3339
from knhk.persistence.verification import UNDECODABLE
from knhk.recovery.places import Place

_FOLDER: Final = "owners"


class Claim(msgspec.Struct, frozen=True):
    """A node that has been the owner since a time (Unix time in ns)."""

    epoch: int
    node_id: str
    at_ns: int


def newest(place: Place, after: int = 0) -> Claim | None:
    """The last claim of an epoch greater than `after`; None if there is none.

    Raises BackupUnavailable, BackupCorrupt.
    """
    name = max((one.name for one in place.entries(_FOLDER, after=_name(after))), default=None)
    if name is None:
        return None
    try:
        return msgspec.json.decode(place.read(name), type=Claim)
    except UNDECODABLE as error:
        raise BackupCorrupt(f"{place}/{name} cannot be read: {error}") from error


def claim(place: Place, mine: Claim) -> None:
    """Become the owner, or say again that one is. Raises Fenced if another node is."""
    present = newest(place, mine.epoch - 1)
    if present is not None and (present.epoch, present.node_id) != (mine.epoch, mine.node_id):
        raise _fenced(place, present, mine.epoch)
    if present is None:
        place.put(_name(mine.epoch), msgspec.json.encode(mine))


def require(place: Place, epoch: int) -> None:
    """Raise Fenced if there is an owner with a greater epoch."""
    present = newest(place, epoch)
    if present is not None:
        raise _fenced(place, present, epoch)


def _name(epoch: int) -> str:
    return f"{_FOLDER}/{epoch:016d}.json"


def _fenced(place: Place, present: Claim, epoch: int) -> Fenced:
    return Fenced(
        f"{place} belongs to node {present.node_id!r} with epoch {present.epoch} since {rfc3339(present.at_ns)}, "
        f"and not to this one with epoch {epoch}",
        hint="That node has taken the partition over. What this one has beyond what was shipped stays where it is.",
    )
