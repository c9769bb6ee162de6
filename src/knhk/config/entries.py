"""What the layers of the configuration hand to the loader: raw values, and where each came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from knhk.domain.errors import Problem

Place = tuple[str | int, ...]
"""A path inside the value of a key, such as (0, "service_key") in `monitoring.alert_channels`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from. `label` is for `knhk config show`, `where` ends a sentence about it."""

    label: str
    where: str = ""
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """The raw value of one key, the origins of the places in it, and the places that a secret was filled into."""

    value: Any
    origin: Origin
    inner: Mapping[Place, Origin] = field(default_factory=dict)
    secrets: frozenset[Place] = frozenset()


@dataclass(slots=True)
class Layer:
    """What one source says. Entries of a later layer replace those of an earlier one, key by key."""

    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def complain(self, message: str, path: str, origin: Origin, suggestion: str = "") -> None:
        """Note one thing that is wrong, at its place."""
        full = f"{message} ({origin.where})" if origin.where else message
        self.problems.append(Problem(full, path, origin.line, origin.column, suggestion))

    def absorb(self, later: "Layer") -> None:
        """Put a later layer on top of this one."""
        self.entries.update(later.entries)
        self.problems.extend(later.problems)
        self.warnings.extend(later.warnings)
