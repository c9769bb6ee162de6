"""Registered definitions: a name with numbered versions, as a fold over the receipts of its record.

A version is a descriptor's text, known by its digest, and never changes. Versions count from 1; a label, such as
`2026.11` or `1.4.0`, is a second name for one. What is submitted by name runs the newest version, if none is named.
"""

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from knhk.domain import event as ev
from knhk.domain.errors import DefinitionConflict, DefinitionNotFound, InvalidParameter
from knhk.domain.event import Event

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
LABEL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
LATEST: Final = "latest"
_NUMBER: Final = re.compile(r"v?([1-9][0-9]{0,8})")
_DIGEST: Final = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")


class Version(msgspec.Struct, frozen=True):
    """One version. `digest` is SHA-256 of the descriptor's text; `at_ns` is when it was put (Unix time)."""

    number: int
    digest: bytes
    label: str
    note: str
    at_ns: int
    actor: str


class Definition:
    """All versions of one name. `record_id` is the chain that holds them, `seq` the number of its receipts."""

    __slots__ = ("name", "record_id", "retired", "seq", "versions")

    def __init__(self, name: str, record_id: int) -> None:
        self.name, self.record_id = name, record_id
        self.versions: list[Version] = []
        self.retired = False
        self.seq = 0

    def apply(self, event: Event) -> None:
        """Take one receipt of the record into the state."""
        match event.detail:
            case ev.DefinitionPut(_, number, digest, label, _, note):
                self.versions.append(Version(number, digest, label, note, event.at_ns, event.actor))
                self.retired = False
            case ev.DefinitionRetired():
                self.retired = True
            case _:
                pass
        self.seq += 1

    def version(self, wanted: str) -> Version:
        """The version with a number (`3`, `v3`), a label or a digest; the newest for nothing or `latest`.

        Raises DefinitionNotFound.
        """
        if wanted in ("", LATEST):
            return self.versions[-1]
        for one in self.versions:
            if one.label == wanted:
                return one
        if (number := _NUMBER.fullmatch(wanted)) and int(number[1]) <= len(self.versions):
            return self.versions[int(number[1]) - 1]
        if digest := _DIGEST.fullmatch(wanted):
            found = [one for one in self.versions if one.digest.hex().startswith(digest[1])]
            if len(found) == 1:
                return found[0]
        newest = self.versions[-1].number
        raise DefinitionNotFound(
            f"{self.name} has no version {wanted[:80]!r}; there are 1 to {newest}",
            hint=f"List them with `knhk definition show {self.name}`.",
        )

    def known(self, digest: bytes, label: str) -> Version | None:
        """The version that has this very text already; None if there is none and it can be put.

        Raises DefinitionConflict if that would change a version: the text has another label, or the label another text.
        """
        for one in self.versions:
            if one.digest == digest and label in ("", one.label):
                return one
            if one.digest == digest:
                raise DefinitionConflict(
                    f"version {one.number} of {self.name} has this very text"
                    + (f" and the label {one.label!r}" if one.label else " and no label")
                )
            if label and one.label == label:
                raise DefinitionConflict(
                    f"{self.name} has a version with the label {label!r}: {one.number}, whose text is another"
                )
        return None


class DefinitionRow(msgspec.Struct, array_like=True):
    """What a list shows of a definition: its newest version."""

    name: str
    record_id: int
    version: int = 0
    digest: bytes = b""
    label: str = ""
    department: str = ""
    at_ns: int = 0
    retired: bool = False


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(DefinitionRow)


def decode_row(raw: bytes) -> DefinitionRow:
    """The row of these bytes."""
    return _DECODER.decode(raw)


def fold_row(raw: bytes | None, record_id: int, event: Event) -> bytes:
    """The row after one more receipt of the record."""
    match event.detail:
        case ev.DefinitionPut(name, version, digest, label, department):
            row = DefinitionRow(name, record_id, version, digest, label, department, event.at_ns)
        case ev.DefinitionRetired(name):
            row = DefinitionRow(name, record_id) if raw is None else decode_row(raw)
            row.retired = True
        case _:
            raise AssertionError("not a receipt of a definition")
    return _ENCODER.encode(row)


def check_name(name: str) -> str:
    """The name, if a definition can be called so. Raises InvalidParameter."""
    if not NAME.fullmatch(name):
        raise InvalidParameter(
            f"{name[:140]!r} cannot name a definition: a letter or _, then at most 127 letters, digits, _ . or -",
            hint="A definition is called as `metadata.name` of its descriptor says.",
        )
    return name


def check_label(label: str) -> str:
    """The label, if a version can be called so. Raises InvalidParameter."""
    taken = label == LATEST or _NUMBER.fullmatch(label) or _DIGEST.fullmatch(label)
    if label and (taken or not LABEL.fullmatch(label)):
        raise InvalidParameter(
            f"label: {label[:80]!r} must have 1 to 64 letters, digits, _ . + or -, such as 1.4.0 or 2026-11-24, and "
            "must not look like a version's number or digest"
        )
    return label


def steps_changed(before: Iterable[tuple[str, object]], after: Iterable[tuple[str, object]]) -> dict[str, list[str]]:
    """Which steps, given by name and content, were added, removed and changed, in the order of their text."""
    old, new = dict(before), dict(after)
    return {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in new if name in old and new[name] != old[name]],
    }
