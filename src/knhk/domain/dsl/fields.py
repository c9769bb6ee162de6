"""Reading typed values out of a document's mappings, with every fault complained of at its place."""

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from knhk.domain.complaints import Complaints, Path
from knhk.domain.descriptor_shape import kind_of
from knhk.domain.units import MAX_DURATION_NS

_UNITS: Final = {
    "days": 86_400_000_000_000,
    "hours": 3_600_000_000_000,
    "minutes": 60_000_000_000,
    "seconds": 1_000_000_000,
    "milliseconds": 1_000_000,
}
_ISO: Final = re.compile(
    r"P(?:(?P<weeks>\d+)W|(?=.)(?:(?P<days>\d+)D)?(?:T(?=.)(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?"
    r"(?:(?P<seconds>\d+(?:\.\d{1,9})?)S)?)?)",
    re.ASCII,
)
_WEEK_NS: Final = 7 * _UNITS["days"]
_NOTHING: Final[Mapping[str, Any]] = {}


class Fields:
    """One mapping of a document. Each getter returns a harmless value where it has to complain."""

    def __init__(self, value: Any, path: Path, complaints: Complaints, known: Collection[str] = ()) -> None:
        self.path, self._complaints = path, complaints
        self.value: Mapping[str, Any] = _NOTHING
        if isinstance(value, Mapping):
            self.value = value
        else:
            complaints.add(f"must be a mapping, not {kind_of(value)}", path)
        if known:
            for key in self.value:
                if key not in known:
                    complaints.add(f"unknown key {key[:80]!r}; known are {', '.join(known)}", (*path, key), key, known)

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def at(self, *keys: str | int) -> Path:
        """The path of something in this mapping."""
        return (*self.path, *keys)

    def complain(self, message: str, *keys: str | int) -> None:
        """Say what is wrong with something in this mapping."""
        self._complaints.add(message, self.at(*keys))

    def complain_of(self, name: str, message: str, known: Collection[str], *keys: str | int) -> None:
        """Say that a name is not among the known ones, and which of them it may have been meant to be."""
        self._complaints.add(message, self.at(*keys), name, known)

    def fields(self, key: str, known: Collection[str] = ()) -> "Fields":
        """The mapping under a key; an empty one if there is none."""
        found = self.value.get(key)
        return Fields(_NOTHING if found is None else found, self.at(key), self._complaints, known)

    def text(self, key: str, default: str = "", *, required: bool = False) -> str:
        """A text."""
        found = self.value.get(key)
        if found is None:
            if required:
                self.complain(f"{key!r} is missing")
            return default
        if isinstance(found, str):
            return found
        self.complain(f"must be a text, not {kind_of(found)}", key)
        return default

    def choice(self, key: str, choices: Collection[str], default: str) -> Any:
        """One of several texts."""
        found = self.text(key, default)
        if found in choices:
            return found
        self._complaints.add(f"must be one of {', '.join(choices)}, not {found!r}", self.at(key), found, choices)
        return default

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        found = self.value.get(key, default)
        if isinstance(found, bool):
            return found
        self.complain(f"must be true or false, not {kind_of(found)}", key)
        return default

    def number(self, key: str) -> int:
        """A whole number from 1, or 0 if there is none."""
        found = self.value.get(key)
        if found is None:
            return 0
        if isinstance(found, int) and not isinstance(found, bool) and found > 0:
            return found
        self.complain(f"must be a whole number from 1, not {kind_of(found)}", key)
        return 0

    def schema(self, key: str) -> Mapping[str, Any] | None:
        """A JSON Schema in the standard's envelope: `{format: json, document: {...}}`."""
        if key not in self:
            return None
        envelope = self.fields(key, ("format", "document", "resource"))
        if "resource" in envelope:
            envelope.complain("schemas from elsewhere are not read; put the schema itself under `document`", "resource")
        if not envelope.text("format", "json").startswith("json"):
            envelope.complain("only JSON Schema (format: json) is known", "format")
        return envelope.fields("document").value

    def duration(self, key: str) -> int:
        """A duration in nanoseconds, written as ISO 8601 or as a mapping of units; 0 if there is none."""
        return self.duration_of(self.value.get(key), key) if key in self else 0

    def duration_of(self, found: Any, *keys: str) -> int:
        """The same for a value that is at hand."""
        if isinstance(found, str):
            return self._iso(found, *keys)
        inner = Fields(found, self.at(*keys), self._complaints, tuple(_UNITS))
        total = 0
        for unit, amount in inner.value.items():
            if not isinstance(amount, int) or isinstance(amount, bool) or amount < 0:
                inner.complain(f"must be a whole number, not {kind_of(amount)}", unit)
            else:
                total += amount * _UNITS.get(unit, 0)
        return self._bounded(total, *keys)

    def _iso(self, text: str, *keys: str) -> int:
        match = _ISO.fullmatch(text.strip())
        if match is None:
            self.complain(f"{text[:40]!r} is no duration; write PT15M, or {{minutes: 15}}", *keys)
            return 0
        whole, _, fraction = (match["seconds"] or "0").partition(".")
        total = int(match["weeks"] or 0) * _WEEK_NS + int(whole) * _UNITS["seconds"] + int(fraction.ljust(9, "0") or 0)
        for unit in ("days", "hours", "minutes"):
            total += int(match[unit] or 0) * _UNITS[unit]
        return self._bounded(total, *keys)

    def _bounded(self, total: int, *keys: str) -> int:
        if total > MAX_DURATION_NS:
            self.complain("longer than 292 years", *keys)
            return 0
        return total
