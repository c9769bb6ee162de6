"""Text to data: a YAML 1.2 (core schema) or JSON document, read defensively, with the place of every value.

There are two readers. The fast one (yaml_rs, about 15 us for a small descriptor) is lenient in places and can be
driven into a stack overflow, so a scan of the text first sends everything unusual to the careful one
(knhk.domain.yaml_events, about 150 us), which decides what is allowed. Whatever the fast one refuses goes there too,
for the message. The two agree on every value; a fuzz test holds that.

Refused are tags, duplicate keys, keys that are no strings, numbers that are not finite or longer than 64 bits, control
characters, several documents, and more depth or values than the limits in yaml_events.
"""

import re
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

import msgspec
import yaml_rs

from knhk.domain.errors import InvalidDescriptor, Problem
from knhk.domain.json_text import read_json
from knhk.domain.yaml_events import MAX_DEPTH, MAX_INT, MAX_VALUES, MIN_INT, Path, Places, Refused, read_yaml

_LIMITS: Final = yaml_rs.AliasLimits(
    max_total_replayed_events=1, max_replay_stack_depth=1, max_alias_expansions_per_anchor=1
)
_MANY_BYTES: Final = 2 * MAX_VALUES
"""A shorter text cannot hold more than MAX_VALUES values."""

# Each pattern begins with a literal or a small set, which the engine of `re` skips to quickly.
_COMPACT_NESTING: Final = re.compile(r"-(?: +-){8}")
"""Collections begun in one line, on which the fast reader recurses without a limit; by lines, columns limit it."""
_FAR_RIGHT: Final = " " * 200
_USUAL_BYTES: Final = bytes([0x0A, *range(0x20, 0x7F), *range(0x80, 0x100)])
_ODD_NUMBERS: Final = (re.compile(r"_(?<![^-+.0-9_eE\s\[{,:]_)"), re.compile(r"0[xXoObB]"))
"""Where a number may stand that the fast reader reads in another way: 1_000, 0b11, -0x1."""
_ODD_COLON: Final = re.compile(r":(?:(?<=[ \n\[{,]:)|(?=[\]},]))")
_HEAD_AT_END: Final = re.compile(r"[|>][-+0-9]*\s*\Z|#")
_QUOTED: Final = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'")
_NO_FLOW: Final = re.compile(r"[^\[{,]*")
_OPEN_FLOW: Final = re.compile(r"[\[{,] *[#\n]")
"""A flow collection that may go on in the next line."""
_INDICATORS: Final = "&*!?%"
_HEAD: Final = re.compile(r"(?:^|[\s\[{,:])[-+.0-9_eE]*\Z")
_TAIL: Final = re.compile(r"[-+.0-9_eE]*(?:[xXoObB][0-9a-fA-F_]+)?(?=[\s,\]}:]|\Z)")
_BACK: Final = 64
_AHEAD: Final = 128
"""A number that goes on beyond counts as suspicious, so that each look at one takes bounded time."""
_LONG_NUMBER: Final = re.compile(r"[0-9]{400}")
"""The fast reader takes time quadratic in the digits of a number, which shows in texts of _LONG_TEXT bytes."""
_LONG_TEXT: Final = 10_000
_FEW: Final = 200
_BYTES_A_CANDIDATE: Final = 32
"""A text with many suspicious places (more than _FEW and one in so many bytes) is read carefully at once."""


_Number = (
    Annotated[int, msgspec.Meta(ge=MIN_INT, le=MAX_INT)]
    | Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
)
_Plain: Any = None | bool | _Number | str
for _ in range(7):
    _Plain = None | bool | _Number | str | list[_Plain] | dict[str, _Plain]


class _Shallow(msgspec.Struct):
    """JSON-like data of few levels, which msgspec checks in a quarter of the time that a loop in Python takes."""

    value: _Plain


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
    if not text.endswith(b"\n"):
        text += b"\n"  # so that the last line of a block scalar ends like the others
    source = _decode(text)
    if source.lstrip(" \t\r\n").startswith("{"):
        document = _read_json(source)
        if document is not None:
            return document
    value = _fast(text, source)
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


def _fast(text: bytes, source: str) -> Any:
    """The value as the fast reader has it, None if the careful one must decide."""
    if _is_unusual(text, source):
        return None
    try:
        value = yaml_rs.loads(source, parse_datetime=False, alias_limits=_LIMITS)
    except Exception:
        return None
    if type(value) is not dict or not _is_plain(value):
        return None
    return value if len(text) < _MANY_BYTES or _count(value) <= MAX_VALUES else None


def _is_unusual(text: bytes, source: str) -> bool:
    """Whether there is anything in the text on which the two readers may differ, or the fast one may fail."""
    if text.translate(None, _USUAL_BYTES):
        return True
    if not source.isascii() and not source.replace("\n", " ").isprintable():
        return True
    if len(text) > _LONG_TEXT and _LONG_NUMBER.search(source):
        return True
    if _FAR_RIGHT in source or _COMPACT_NESTING.search(source):
        return True
    if _ODD_COLON.search(source) or source.startswith(":"):
        return True
    if ("{" in source and _is_open_over_lines(source)) or "\n..." in source or source.startswith("..."):
        return True
    for indicator in _INDICATORS:
        if indicator in source and _begins_token(source, indicator):
            return True
    for indicator in "|>":
        if indicator in source and _is_odd_block(source, indicator):
            return True
    return any(pattern.search(source) and _has_odd_number(source, pattern) for pattern in _ODD_NUMBERS)


def _begins_token(source: str, indicator: str) -> bool:
    """Whether a tag, anchor, alias, explicit key or directive may begin anywhere, and not just `2>&1` or `a && b`."""
    return any(True for _ in _tokens(source, indicator))


def _is_odd_block(source: str, indicator: str) -> bool:
    """Whether what looks like the head of a block scalar may stand in a flow collection, or has no text after it."""
    last = source[source.rfind("\n", 0, len(source.rstrip())) + 1 :]
    if indicator in last and _HEAD_AT_END.search(last[-_BACK:]):
        return True
    several_lines = None
    for at in _tokens(source, indicator):
        start = source.rfind("\n", max(0, at - 4 * _BACK), at) + 1
        before = source[start:at].strip(" ")
        if before == "" or (start == 0 and at > 4 * _BACK) or before[0] == ":" or not _NO_FLOW.fullmatch(before):
            return True
        if several_lines is None and (several_lines := _OPEN_FLOW.search(source) is not None):
            return True
    return False


def _is_open_over_lines(source: str) -> bool:
    """Whether a flow mapping may go on in the next line. Keys in it that do are taken by the fast reader alone."""
    for line in source.split("\n"):
        if "{" in line or "}" in line:
            if '"' in line or "'" in line:
                line = _QUOTED.sub("", line)
            if line.count("{") != line.count("}"):
                return True
    return False


def _tokens(source: str, indicator: str) -> Iterator[int]:
    """Where an indicator may begin a token; also once more if there are too many to look at."""
    at = source.find(indicator)
    for _ in range(_FEW + len(source) // _BYTES_A_CANDIDATE):
        if at < 0:
            return
        if at == 0 or source[at - 1] in " \n[{,:":
            before = source[max(0, at - _BACK) : at].rstrip(" ")
            if not before or before[-1] in "\n[{,:-?":
                yield at
        at = source.find(indicator, at + 1)
    yield 0


def _has_odd_number(source: str, pattern: re.Pattern[str]) -> bool:
    """Whether there may be a number that is written with underscores or in another base than ten."""
    most = _FEW + len(source) // _BYTES_A_CANDIDATE
    for count, match in enumerate(pattern.finditer(source)):
        at = match.start()
        if count == most or (_TAIL.match(source, at, at + _AHEAD) and _HEAD.search(source[max(0, at - _BACK) : at])):
            return True
    return False


def _is_plain(value: Any) -> bool:
    """Whether keys are strings, numbers finite and of 64 bits, and nesting not too deep."""
    try:
        msgspec.convert({"value": value}, _Shallow)
    except msgspec.ValidationError:
        return _is_plain_deep(value, MAX_DEPTH)
    return True


def _is_plain_deep(part: Any, levels: int) -> bool:
    if isinstance(part, dict | list):
        if levels == 0 or (isinstance(part, dict) and not all(type(key) is str for key in part)):
            return False
        return all(_is_plain_deep(one, levels - 1) for one in (part.values() if isinstance(part, dict) else part))
    if isinstance(part, float):
        return part - part == 0.0
    return part is None or isinstance(part, str | bool) or (isinstance(part, int) and MIN_INT <= part <= MAX_INT)


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
