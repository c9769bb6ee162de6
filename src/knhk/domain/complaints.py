"""What is wrong with a descriptor, collected, so that all of it is said at once."""

import difflib
from collections.abc import Callable, Collection, Iterable
from typing import Final

from knhk.domain.errors import InvalidDescriptor, Problem

Path = tuple[str | int, ...]
MAX_PROBLEMS: Final = 100
MAX_SUGGESTIONS: Final = 20
"""How many are looked for; each takes time in the number of known names."""
_MANY_NAMES: Final = 2000


class Complaints:
    """Problems with their places, which are only looked up when there are any."""

    def __init__(self, locate: Callable[[Path], tuple[int, int]]) -> None:
        self._locate = locate
        self._found: list[tuple[str, Path, str]] = []
        self._more = 0
        self._suggestions = 0

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, message: str, path: Path, name: str = "", known: Collection[str] = ()) -> None:
        """Note a problem at a path. The first MAX_PROBLEMS are kept, the others counted.

        If the problem is a name that is not among the known ones, the nearest of these is suggested.
        """
        if len(self._found) >= MAX_PROBLEMS:
            self._more += 1
            return
        suggestion = nearest(name, known) if known and self._suggestions < MAX_SUGGESTIONS else ""
        self._suggestions += bool(known)
        self._found.append((message, path, suggestion))

    def problems(self) -> list[Problem]:
        """All problems, in the order of the text."""
        found = []
        for message, path, suggestion in self._found:
            line, column = self._locate(path)
            found.append(Problem(message, written(path), line, column, suggestion))
        found.sort(key=lambda problem: (problem.line, problem.column))
        return found

    def raise_if_any(self) -> None:
        """Raise InvalidDescriptor with all problems."""
        if not self._found:
            return
        problems = self.problems()
        message = str(problems[0])
        count = len(problems) + self._more
        if count > 1:
            message += f" (and {count - 1} more problem{'s' if count > 2 else ''})"
        raise InvalidDescriptor(message, problems=problems)


def written(path: Path) -> str:
    """A path as people write it: `spec.steps[1].depends_on[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.replace("_", "a").isalnum():
            text += f".{part}" if text else part
        else:
            text += f"[{part[:80]!r}]"
    return text


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, or nothing."""
    names = list(known)
    folded = name.replace("-", "_").lower()
    for candidate in names:
        if candidate.replace("-", "_").lower() == folded:
            return candidate
    if len(names) > _MANY_NAMES or len(name) > 128:  # comparing costs time in the number and length of names
        return ""
    close = difflib.get_close_matches(name, names, 1, 0.6)
    return close[0] if close else ""
