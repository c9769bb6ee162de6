"""The text of a descriptor as a pattern with holes, so that another that differs only there need not be read.

A hole is a word (letters, digits, `_` and `-`, in quotes or not) that is all of a value. A word in the place of a word
changes nothing around it, so a text that fits the pattern is the same document with these values in it. What a word
without quotes means is for the careful reader's rules to say (`resolve_plain`).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from knhk.domain.yaml_events import Path, Refused, resolve_plain

MOST_HOLES: Final = 200
_WORD_BYTES: Final = b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_HOLE: Final = b"([A-Za-z0-9][A-Za-z0-9_-]{0,254}+)"
_ENTRY: Final = re.compile(
    r"""(?P<around>["']?)(?P<key>[A-Za-z0-9_-]+)(?P=around): *"""
    r"""(?P<quote>["']?)(?P<word>[A-Za-z0-9][A-Za-z0-9_-]{0,254}+)(?P=quote)(?=[\n,}])"""
)


class Pattern(NamedTuple):
    """A text with holes: for each of them, where its value is in the document and whether it is in quotes."""

    expression: re.Pattern[bytes]
    holes: tuple[tuple[Path, bool], ...]

    def values(self, text: bytes) -> list[Any] | None:
        """What is in the holes of a text, in their order; None if it does not fit, or has a number that is refused."""
        match = self.expression.fullmatch(text)
        if match is None:
            return None
        words = zip(match.groups(), self.holes, strict=True)
        try:
            return [word.decode() if quoted else resolve_plain(word.decode()) for word, (_, quoted) in words]
        except Refused:
            return None


def outline(text: bytes) -> bytes:
    """What is left of a text without its words, the same for all that fit one pattern."""
    return text.translate(None, _WORD_BYTES)


def pattern_of(text: bytes, leaves: Mapping[Path, Any], locate: Callable[[Path], tuple[int, int]]) -> Pattern | None:
    """The pattern of a text that was read, with holes for those of these values that are words; None without any.

    `locate` tells line and column, from 1, of the key of each value.
    """
    if b"\r" in text or b"*" in text or len(leaves) > MOST_HOLES:
        return None  # Lines could end in other ways, and through an alias one word could stand for two values.
    source = text.decode()
    is_json = source.lstrip(" \t\n").startswith("{")  # of which a word without quotes could make YAML
    line_starts = [0, *[match.end() for match in re.finditer("\n", source)]]
    found = []
    for path, value in leaves.items():
        line, column = locate(path)
        entry = _ENTRY.match(source, line_starts[line - 1] + column - 1)
        if entry is None or entry["key"] != path[-1]:
            continue
        quoted = bool(entry["quote"])
        read = entry["word"] if quoted else resolve_plain(entry["word"])
        if type(read) is type(value) and read == value and (quoted or not is_json):
            found.append((*entry.span("word"), (path, quoted)))
    found.sort()
    ends = [0, *[end for _, end, _ in found]]
    starts = [*[start for start, _, _ in found], len(source)]
    literals = [re.escape(source[end:start].encode()) for end, start in zip(ends, starts, strict=True)]
    return Pattern(re.compile(_HOLE.join(literals)), tuple([hole for _, _, hole in found])) if found else None
