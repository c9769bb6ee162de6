"""What this version reads but does not act on. When a part is built, its row goes.

An operator who sets something must not be left to believe that it works: the server logs a sentence for each row that
was set.
"""

from typing import Final, NamedTuple

from knhk.config import keys
from knhk.config.loaded import Loaded


class Absent(NamedTuple):
    """A section or some keys without effect, and what that means for the operator."""

    names: tuple[str, ...]
    consequence: str


ABSENT: Final = (
    Absent(("platform.enable_learning", "learning"), "nothing is learned or tuned"),
    Absent(("platform.enable_cost_tracking", "cost_tracking"), "no costs are counted and no budget is watched"),
    Absent(("auth",), "callers are not authenticated, so let only trusted ones reach the ports"),
    Absent(("audit",), "no audit log is written"),
    Absent(("tls",), "connections are plain HTTP, so put a proxy in front that encrypts them"),
)


def has_effect(name: str) -> bool:
    """Whether this version acts on a key."""
    return not any(_covers(row, name) for row in ABSENT)


def absent_sections(loaded: Loaded) -> list[str]:
    """A sentence for everything that the operator set and that has no effect. What was switched off is passed over."""
    sentences = []
    asked = [name for name in keys.known() if _is_asked_for(loaded, name)]
    for row in ABSENT:
        names = [covered for covered in row.names if any(_is_within(name, covered) for name in asked)]
        if names:
            sources = dict.fromkeys(_place(loaded.sources[name]) for name in asked if _covers(row, name))
            verb = "has" if len(names) == 1 else "have"
            sentences.append(
                f"{', '.join(names)} (set by {', '.join(sources)}) {verb} no effect in this version: {row.consequence}"
            )
    return sentences


def _covers(row: Absent, name: str) -> bool:
    return any(_is_within(name, covered) for covered in row.names)


def _is_within(name: str, covered: str) -> bool:
    return name == covered or name.startswith(f"{covered}.")


def _place(source: str) -> str:
    """A source without its line: a section is spread over many."""
    return (
        source.removeprefix("file:").rpartition(":")[0] if source.startswith("file:") else source.removeprefix("env:")
    )


def _is_asked_for(loaded: Loaded, name: str) -> bool:
    """Whether the operator asked for something with a key: it is set, and neither is nor belongs to an off switch."""
    if loaded.sources[name] == "default" or keys.known()[name].value(loaded.config) in (False, "none"):
        return False
    switch = f"{name.partition('.')[0]}.enabled"
    if switch not in keys.known() or loaded.sources[switch] == "default":
        return True
    return bool(keys.known()[switch].value(loaded.config))
