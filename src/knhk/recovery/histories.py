"""Histories: which of the journals that were ever shipped to a place follows which.

A data directory that was restored to an earlier state goes on differently from there than the one before. So that the
segments of both can lie in one place, each line of events has a name, its history, and a document

    histories/<history>.json    {"history", "parent", "started_at_ns", "node_id", "heads": {"0": [height, block hash]}}
    histories/<history>.json.sig    as a manifest's (manifest.py), over 0x08 || the bytes of the document

where `heads` is how far the parent's blocks belong to it too. A new journal has no parent. `epoch` is that of the owner
in a cluster, 0 elsewhere: the history of a greater one is the newer one, whatever the clocks of the nodes said. Without
its document the segments of a history are not found: it is read back before the first one counts as shipped.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from knhk.domain.errors import BackupCorrupt, BackupUnavailable, NotFound
from knhk.persistence.verification import UNDECODABLE, CheckSignature
from knhk.ports.environment import PublicKey, Signer
from knhk.recovery import manifest as manifests
from knhk.recovery.places import Place

HISTORY_PREFIX: Final = b"\x08"
_FOLDER: Final = "histories"
_SUFFIX: Final = ".json"
_DEEPEST: Final = 1000
_DAMAGED: Final = (
    "Put back a copy of it. A server that ships there makes all anew, from the first block, once the file is removed."
)


class History(msgspec.Struct, frozen=True):
    """One line of events. `heads` has height and block hash (hexadecimal) of the last inherited block, by partition."""

    history: str
    parent: str
    started_at_ns: int
    node_id: str
    heads: dict[str, tuple[int, str]]
    epoch: int = 0

    def inherited(self, partition: int) -> int:
        """The last height of a partition that is the parent's, -1 if none is."""
        return self.heads.get(str(partition), (-1, ""))[0]


class Reader(NamedTuple):
    """Reads the documents in a place, if they are signed: with `trusted`, by one of these keys."""

    place: Place
    trusted: Sequence[PublicKey] | None
    check: CheckSignature

    def read(self, name: str) -> History:
        """The document of a history. Raises NotFound if there is none, BackupCorrupt if it is not what was written."""
        path = _path(name)
        raw = self.place.read(path)
        try:
            signature = self.place.read(f"{path}.sig")
        except NotFound as error:
            raise BackupCorrupt(f"{self.place}/{path} is not signed: {path}.sig is missing", hint=_DAMAGED) from error
        keys = None if self.trusted is None else {key.key_id: key for key in self.trusted}
        if objection := manifests.objection(raw, signature, keys, self.check, prefix=HISTORY_PREFIX):
            raise BackupCorrupt(f"{self.place}/{path}: {objection}", hint=_DAMAGED)
        try:
            found = msgspec.json.decode(raw, type=History)
        except UNDECODABLE as error:
            raise BackupCorrupt(f"{self.place}/{path} cannot be read: {error}") from error
        if found.history != name:
            raise BackupCorrupt(f"{self.place}/{path} is the document of {found.history}: it was renamed")
        return found

    def newest(self, to_ns: int = 0) -> History | None:
        """The history that began last, at `to_ns` at the latest if that is given; None if there is none."""
        names = [one.name.rpartition("/")[2] for one in self.place.entries(_FOLDER)]
        found = [self.read(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX)]
        known = [one for one in found if not to_ns or one.started_at_ns <= to_ns] or found
        return max(known, key=lambda one: (one.epoch, one.started_at_ns), default=None)

    def line(self, name: str) -> list[History]:
        """A history and its ancestors, the oldest first. Raises NotFound if one of them is missing."""
        found: list[History] = []
        while name:
            try:
                found.append(self.read(name))
            except NotFound as error:
                raise NotFound(f"{self.place}: history {name} is missing") from error
            if len(found) > _DEEPEST:
                raise BackupCorrupt(f"{self.place}: the histories name each other in a circle")
            name = found[-1].parent
        return found[::-1]


def write(place: Place, history: History, signer: Signer) -> None:
    """Keep the document of a history. Raises BackupUnavailable if the place does not."""
    path, raw = _path(history.history), msgspec.json.encode(history)
    for name, content in (
        (f"{path}.sig", manifests.signed(HISTORY_PREFIX + raw, signer)),
        (path, raw),
    ):
        place.put(name, content)
        if not place.has(name) or place.read(name) != content:
            place.delete([name])  # half of a document would be in the way of every restore
            raise BackupUnavailable(f"{place} said that it has {name}, and does not have it")


def _path(name: str) -> str:
    return f"{_FOLDER}/{name}{_SUFFIX}"
