"""The careful reader: YAML as PyYAML's C parser sees it, folded to data here, with limits and with places.

PyYAML resolves scalars by YAML 1.1 and lets duplicate keys, tags and deep nesting pass, so only its events are used.
Scalars are resolved by the core schema of YAML 1.2.2 (section 10.3.2); `<<` is a key like any other.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import yaml

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 300_000
"""How many values and keys a document can hold."""
MAX_REPEATED: Final = 100_000
"""How many of them can come from aliases."""
MAX_INT: Final = 2**63 - 1
MIN_INT: Final = -(2**63)

Path = tuple[str | int, ...]
Places = dict[Path, tuple[int, int]]

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?[0-9]+", re.ASCII)
_BASED: Final = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_FORBIDDEN: Final = re.compile(
    r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]|[\u2028\u2029]"
)
_TOO_MANY_DIGITS: Final = 30


class Refused(Exception):
    """The text cannot be read, with the place at which that shows; line and column count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


class _Frame:
    """A sequence or mapping that is being read. In a mapping `key` is the one whose value comes next."""

    __slots__ = ("anchor", "key", "path", "size", "value")

    def __init__(self, value: Any, path: Path, anchor: str | None, size: int) -> None:
        self.value = value
        self.path = path
        self.anchor = anchor
        self.size = size
        self.key: str | None = None


class _Builder:
    """Folds events to a value. Iterative, so that depth is a limit of ours and not Python's."""

    def __init__(self) -> None:
        self.places: Places = {}
        self.root: Any = None
        self.has_root = False
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int, int]] = {}
        self._values = 0
        self._repeated = 0

    def take(self, event: Any) -> None:
        """Take in the next event."""
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent):
            self._start(event, {})
        elif isinstance(event, yaml.SequenceStartEvent):
            self._start(event, [])
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            if self.has_root:
                _refuse("there is more than one document; one descriptor is one document", event)
            if event.tags:
                _refuse("%TAG directives are not allowed", event)
            self.has_root = True

    def _scalar(self, event: Any) -> None:
        if event.tag is not None:
            _refuse(f"tags are not allowed: {event.tag}", event)
        frame = self._stack[-1] if self._stack else None
        plain = event.implicit[0] and not event.style
        if frame is not None and frame.key is None and type(frame.value) is dict:
            self._key(frame, event, plain)
            return
        value = resolve_plain(event.value, event) if plain else event.value
        self._count(1, event)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1, 0)
        self._put(value, event)

    def _key(self, frame: _Frame, event: Any, plain: bool) -> None:
        key = event.value
        if plain and not isinstance(resolve_plain(key, event), str):
            _refuse(f"keys must be strings; write {key!r} in quotes" if key else "a key is missing", event)
        if key in frame.value:
            first = self.places.get((*frame.path, key))
            _refuse(f"the key {key!r} is here twice" + (f", first in line {first[0]}" if first else ""), event)
        self._count(1, event)
        if event.anchor is not None:
            self._anchors[event.anchor] = (key, 1, 0)
        frame.key = key
        self.places[(*frame.path, key)] = _place(event)

    def _start(self, event: Any, value: Any) -> None:
        if event.tag is not None:
            _refuse(f"tags are not allowed: {event.tag}", event)
        if len(self._stack) >= MAX_DEPTH:
            _refuse(f"nested more than {MAX_DEPTH} deep", event)
        frame = self._stack[-1] if self._stack else None
        if frame is not None and type(frame.value) is dict and frame.key is None:
            _refuse("keys must be strings", event)
        path = self._path()
        self._count(1, event)
        self._put(value, event)
        if event.anchor is not None:
            self._anchors.pop(event.anchor, None)
        self._stack.append(_Frame(value, path, event.anchor, self._values - 1))

    def _end(self) -> None:
        frame = self._stack.pop()
        if frame.anchor is not None:
            self._anchors[frame.anchor] = (frame.value, self._values - frame.size, _depth(frame.value))

    def _alias(self, event: Any) -> None:
        frame = self._stack[-1] if self._stack else None
        if event.anchor not in self._anchors:
            _refuse(f"the alias *{event.anchor} has no anchor before it that is complete", event)
        value, size, depth = self._anchors[event.anchor]
        self._repeated += size
        if self._repeated > MAX_REPEATED:
            _refuse(f"aliases repeat more than {MAX_REPEATED} values", event)
        if len(self._stack) + depth > MAX_DEPTH:
            _refuse(f"nested more than {MAX_DEPTH} deep", event)
        if frame is not None and type(frame.value) is dict and frame.key is None:
            _refuse("an alias cannot be a key", event)
        self._count(size, event)
        self._put(value, event)

    def _path(self) -> Path:
        """The path of the value that comes next."""
        if not self._stack:
            return ()
        frame = self._stack[-1]
        last = frame.key if type(frame.value) is dict else len(frame.value)
        return (*frame.path, last)  # type: ignore[arg-type]  # a mapping's key is never None here

    def _put(self, value: Any, event: Any) -> None:
        if not self._stack:
            self.root = value
            self.places[()] = _place(event)
            return
        frame = self._stack[-1]
        if type(frame.value) is dict:
            frame.value[frame.key] = value
            frame.key = None
        else:
            self.places[(*frame.path, len(frame.value))] = _place(event)
            frame.value.append(value)

    def _count(self, size: int, event: Any) -> None:
        self._values += size
        if self._values > MAX_VALUES:
            _refuse(f"more than {MAX_VALUES} values", event)


def read_yaml(source: str) -> tuple[Any, Places]:
    """The value of a document whose root is a mapping, and the place of every key and element. Raises Refused."""
    _check_characters(source)
    builder = _Builder()
    for event in _events(source):
        builder.take(event)
    if not builder.has_root or (builder.root is None and not source.strip()):
        raise Refused("the document is empty", 1, 1)
    if type(builder.root) is not dict:
        line, column = builder.places.get((), (1, 1))
        raise Refused(
            f"the document must be a mapping (apiVersion, kind, ...), not {_name(builder.root)}", line, column
        )
    return builder.root, builder.places


def _events(source: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(source, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = error.problem or error.context or "not YAML"
        raise Refused(f"not YAML: {said}", mark.line + 1 if mark else 1, mark.column + 1 if mark else 1) from error
    except (yaml.YAMLError, ValueError) as error:
        raise Refused(f"not YAML: {str(error).splitlines()[0]}", 1, 1) from error


def _check_characters(source: str) -> None:
    match = _FORBIDDEN.search(source)
    if match is None:
        return
    at = match.start()
    line = source.count("\n", 0, at) + 1
    what = "a byte order mark" if match[0] == "\ufeff" else f"the character U+{ord(match[0]):04X}"
    raise Refused(f"{what} is not allowed here; escape it in double quotes", line, at - source.rfind("\n", 0, at))


def resolve_plain(text: str, event: Any = None) -> Any:
    """A plain scalar as the core schema has it. Raises Refused, at the place of the event if there is one."""
    if text in _NULL:
        return None
    if text[0] not in "-+.0123456789":
        return _BOOL.get(text, text)
    if _INT.fullmatch(text):
        return _integer(text, 10, event)
    if _BASED.fullmatch(text):
        return _integer(text[2:], 8 if text[1] == "o" else 16, event)
    if _FLOAT.fullmatch(text):
        value = float(text)
        if value - value == 0.0:
            return value
        _refuse(f"the number {text[:40]} is too large", event)
    if _NOT_FINITE.fullmatch(text):
        _refuse(f"{text} is not allowed: numbers must be finite", event)
    return text


def _integer(digits: str, base: int, event: Any) -> int:
    # Converting thousands of digits takes quadratic time; leading zeros do not count.
    significant = digits.lstrip("+-").lstrip("0")
    value = int(significant or "0", base) if len(significant) <= _TOO_MANY_DIGITS else MAX_INT + 2
    if digits.startswith("-"):
        value = -value
    if not MIN_INT <= value <= MAX_INT:
        _refuse(f"the integer {digits[:40]} does not fit in 64 bits", event)
    return value


def _depth(value: Any) -> int:
    """How many levels of mappings and sequences there are in a value."""
    deepest, stack = 0, [(value, 1)]
    while stack:
        part, depth = stack.pop()
        if isinstance(part, dict | list):
            deepest = max(deepest, depth)
            stack.extend((one, depth + 1) for one in (part.values() if isinstance(part, dict) else part))
    return deepest


def _place(event: Any) -> tuple[int, int]:
    return (1, 1) if event is None else (event.start_mark.line + 1, event.start_mark.column + 1)


def _name(value: Any) -> str:
    if value is None:
        return "empty"
    return "a list" if isinstance(value, list) else "a single value"


def _refuse(message: str, event: Any) -> NoReturn:
    raise Refused(message, *_place(event))
