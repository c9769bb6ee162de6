"""Text to data: a YAML 1.2 (core schema) or JSON document, read defensively, with the place of every value.

There are two readers. The fast one (yaml_rs, about 15 us for a small descriptor) is lenient in places and can be
driven into a stack overflow, so a scan of the text first sends everything unusual to the careful one
(knhk.domain.yaml_events, about 150 us), which decides what is allowed. Whatever the fast one refuses goes there too,
for the message. The two agree on every value; a fuzz test holds that. Refused are tags, duplicate keys, keys that are no strings, numbers that are not
finite or longer than 64 bits, control characters, several documents, and more depth or values than the limits below.
"""

import re
from collections.abc import Callable
from typing import Any, Final

import yaml_rs

from knhk.domain.errors import InvalidDescriptor, Problem
from knhk.domain.json_text import read_json
from knhk.domain.yaml_events import MAX_DEPTH, MAX_INT, MAX_VALUES, MIN_INT, Path, Places, Refused, read_yaml

_LIMITS: Final = yaml_rs.AliasLimits(
    max_total_replayed_events=1, max_replay_stack_depth=1, max_alias_expansions_per_anchor=1
)
_MANY_BYTES: Final = 2 * MAX_VALUES
"""A shorter text cannot hold more than MAX_VALUES values."""

_UNUSUAL: Final = re.compile(
    r"""
      (?:[-?:][ \t\r\n]+){16}        # compact nesting, on which the fast reader recurses without a limit
    | [0-9][eE][+]?[0-9]{3}          # a float that may be infinite
    | \.[iInN][nNaA][fFnN]           # .inf and .nan
    | [0-9]{19}                      # an integer that may not fit
    | (?:^|[^\w.])[-+]?0[xXoObB]     # a base: +0x1 is no number in YAML 1.2
    """,
    re.VERBOSE,
)
_CANDIDATES: Final = re.compile(r"[!&*|>%?](?=\S)|[0-9+\-.]_|^%|^\?|[?][ \t\r\n]", re.MULTILINE)
_NUMBER_BEFORE: Final = re.compile(r"(?:^|[\s\[{,:\-?])[-+.0-9a-fA-FxXoO_]*\Z")
_TOKEN_BEFORE: Final = re.compile(r"(?:^|[\n\r\[{,]|[-?:][ \t])[ \t]*\Z")
_FEW_CANDIDATES: Final = 200
_BACK: Final = 64


class Document:
    """A document that was read: its value, and where each part of it stands in the text."""

    __slots__ = ("_locate", "_places", "value")

    def __init__(self, value: Any, places: Callable[[], Places]) -> None:
        self.value = value
        self._places: Places | None = None
        self._locate = places

    def locate(self, path: Path) -> tuple[int, int]:
        """Line and column (from 1) of the value at a path, or else of the nearest part around it that exists."""
        if self._places is None:
            self._places = self._locate()
        for length in range(len(path), -1, -1):
            if place := self._places.get(path[:length]):
                return place
        return (1, 1)


def read(text: bytes, *, max_bytes: int) -> Document:
    """Read a document whose root is a mapping.

    Raises InvalidDescriptor with one problem: the first place at which the text cannot be read.
    """
    if len(text) > max_bytes:
        raise _invalid(f"the descriptor is too large: {len(text)} bytes; at most {max_bytes} are allowed", 0, 0)
    source = _decode(text)
    if source.lstrip(" \t\r\n").startswith("{"):
        document = _read_json(source)
        if document is not None:
            return document
    value = _fast(source)
    if value is None:
        value = _careful(source)[0]
    return Document(value, lambda: _careful(source)[1])


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        column = error.start - text.rfind(b"\n", 0, error.start)
        raise _invalid(f"the descriptor is not UTF-8: byte 0x{text[error.start]:02x}", line, column) from error


def _read_json(source: str) -> Document | None:
    """The document if the text is JSON, None if it is not."""
    try:
        value, places = read_json(source)
    except Refused as error:
        raise _invalid(error.message, error.line, error.column) from error
    except ValueError:
        return None
    return Document(value, places)


def _fast(source: str) -> Any:
    """The value as the fast reader has it, None if the careful one must decide."""
    if _is_unusual(source):
        return None
    try:
        value = yaml_rs.loads(source, parse_datetime=False, alias_limits=_LIMITS)
    except Exception:
        return None
    if type(value) is not dict:
        return None
    return value if _is_plain(value, 0) and (len(source) < _MANY_BYTES or _count(value) <= MAX_VALUES) else None


def _is_unusual(source: str) -> bool:
    """Whether there is anything in the text on which the two readers may differ."""
    if not source.replace("\n", " ").isprintable() or " " * 200 in source or _UNUSUAL.search(source):
        return True
    for count, match in enumerate(_CANDIDATES.finditer(source)):
        at = match.start()
        before = source[max(0, at - _BACK) : at]
        if count >= _FEW_CANDIDATES:
            return True
        if match[0][0] in "!&*|>%?":
            if match[0][0] not in "|>" and (_TOKEN_BEFORE.search(before) or not before.strip(" ")):
                return True
        elif _NUMBER_BEFORE.search(before):
            return True
    return False


def _is_plain(value: Any, depth: int) -> bool:
    """Whether keys are strings, numbers finite and in range, and nesting not too deep."""
    kind = type(value)
    if kind is str:
        return True
    if kind is dict:
        if depth >= MAX_DEPTH:
            return False
        for key, part in value.items():
            if type(key) is not str or (type(part) is not str and not _is_plain(part, depth + 1)):
                return False
        return True
    if kind is list:
        if depth >= MAX_DEPTH:
            return False
        for part in value:  # noqa: SIM110  # a generator would cost more
            if type(part) is not str and not _is_plain(part, depth + 1):
                return False
        return True
    if kind is int:
        return bool(MIN_INT <= value <= MAX_INT)
    if kind is float:
        return bool(value - value == 0.0)
    return value is None or kind is bool


def _count(value: Any) -> int:
    """How many values and keys there are in a document; it is not deep."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


def _careful(source: str) -> tuple[Any, Places]:
    try:
        return read_yaml(source)
    except Refused as error:
        raise _invalid(error.message, error.line, error.column) from error


def _invalid(message: str, line: int, column: int) -> InvalidDescriptor:
    problem = Problem(message, line=line, column=column)
    return InvalidDescriptor(str(problem), problems=[problem])


__all__ = ["Document", "read"]
