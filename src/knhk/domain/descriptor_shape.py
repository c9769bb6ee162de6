"""The types of which a descriptor's shape is made, and the check of a value against them that finds every fault."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from knhk.domain.complaints import Complaints, Path

DROP: Final = object()
"""Stands for a value that did not fit and is left out."""
BLANK: Final = "\0"
"""Stands for a text that did not fit where there must be one. Nothing more is said about it."""


class Text(msgspec.Struct, frozen=True):
    """A string."""


class Boolean(msgspec.Struct, frozen=True):
    """true or false."""


class Value(msgspec.Struct, frozen=True):
    """Anything."""


class Schema(msgspec.Struct, frozen=True):
    """A JSON Schema: a mapping, true or false."""


class Integer(msgspec.Struct, frozen=True):
    """A whole number from `least` to `most`."""

    least: int
    most: int


class Number(msgspec.Struct, frozen=True):
    """A number from `least` to `most`."""

    least: float
    most: float


class Choice(msgspec.Struct, frozen=True):
    """One of some strings."""

    values: tuple[str, ...]


class ListOf(msgspec.Struct, frozen=True):
    """A list of which each element fits `item`."""

    item: "Shape"


class MapOf(msgspec.Struct, frozen=True):
    """A mapping with any keys, of which each value fits `item`."""

    item: "Shape"


class Either(msgspec.Struct, frozen=True):
    """A string, or else an object."""

    text: Text
    other: "Object | MapOf"


class Named(msgspec.Struct, frozen=True):
    """A shape with a name, which may stand inside itself."""

    name: str
    shape: "Callable[[], Shape]"


class Field(msgspec.Struct, frozen=True):
    """One key of an object. One that is not required may be null, which is the same as leaving it out."""

    shape: "Shape"
    description: str
    required: bool = False


class Object(msgspec.Struct, frozen=True):
    """A mapping with exactly these keys. If there are any in `one_of`, one of them must be there (not checked here)."""

    fields: dict[str, Field]
    one_of: tuple[str, ...] = ()


Shape = Text | Boolean | Value | Schema | Integer | Number | Choice | ListOf | MapOf | Either | Named | Object


def check(shape: Shape, value: Any, path: Path, complaints: Complaints) -> Any:
    """What of a value fits the shape, DROP if nothing does. Complains of everything else."""
    return _CHECKS[type(shape)](shape, value, path, complaints)


def kind_of(value: Any) -> str:
    """What a value is, in words that people who write YAML know."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    return "a list" if isinstance(value, list) else "a mapping"


def _text(_shape: Any, value: Any, path: Path, complaints: Complaints) -> Any:
    if isinstance(value, str):
        return value
    hint = "; put it in quotes" if isinstance(value, bool | int | float) else ""
    if hint and path and path[-1] in ("timeout", "delay", "max_delay"):
        hint = f"; write a unit, as in {value}s"
    return _wrong("a text", value, path, complaints, hint)


def _boolean(_shape: Any, value: Any, path: Path, complaints: Complaints) -> Any:
    return value if isinstance(value, bool) else _wrong("true or false", value, path, complaints)


def _value(_shape: Any, value: Any, _path: Path, _complaints: Complaints) -> Any:
    return value


def _schema(_shape: Any, value: Any, path: Path, complaints: Complaints) -> Any:
    return value if isinstance(value, bool | dict) else _wrong("a JSON Schema", value, path, complaints)


def _number(shape: Any, value: Any, path: Path, complaints: Complaints) -> Any:
    whole = isinstance(shape, Integer)
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if fits and shape.least <= value <= shape.most:
        return value
    name = "a whole number" if whole else "a number"
    return _wrong(f"{name} from {shape.least:g} to {shape.most:g}", value, path, complaints)


def _choice(shape: Any, value: Any, path: Path, complaints: Complaints) -> Any:
    if isinstance(value, str) and value in shape.values:
        return value
    known = ", ".join(shape.values)
    wanted = f"one of {known}" if len(shape.values) > 1 else known
    complaints.add(f"must be {wanted}, not {kind_of(value)}", path, str(value), shape.values)
    return DROP


def _list(shape: Any, value: Any, path: Path, complaints: Complaints) -> Any:
    if not isinstance(value, list):
        return _wrong("a list", value, path, complaints)
    parts = (check(shape.item, part, (*path, at), complaints) for at, part in enumerate(value))
    return [blank(shape.item) if part is DROP else part for part in parts]  # in place: further faults are counted right


def _map(shape: Any, value: Any, path: Path, complaints: Complaints) -> Any:
    if not isinstance(value, dict):
        return _wrong("a mapping", value, path, complaints)
    parts = ((key, check(shape.item, part, (*path, key), complaints)) for key, part in value.items())
    return {key: part for key, part in parts if part is not DROP}


def _either(shape: Any, value: Any, path: Path, complaints: Complaints) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return _wrong("a text or a mapping", value, path, complaints)
    return check(shape.other, value, path, complaints)


def _named(shape: Any, value: Any, path: Path, complaints: Complaints) -> Any:
    return check(shape.shape(), value, path, complaints)


def _object(shape: Any, value: Any, path: Path, complaints: Complaints) -> Any:
    if not isinstance(value, dict):
        return _wrong("a mapping", value, path, complaints)
    fields: Mapping[str, Field] = shape.fields
    kept: dict[str, Any] = {}
    for key, part in value.items():
        field = fields.get(key)
        if field is None:
            _unknown_key(key, fields, path, complaints)
        elif part is not None or field.required:
            fitting = check(field.shape, part, (*path, key), complaints)
            if fitting is not DROP:
                kept[key] = fitting
            elif key in shape.one_of:  # It is there, so that none is missing; what it should be is unknown.
                kept[key] = blank(field.shape)
    for key, field in fields.items():
        if field.required and key not in kept:
            kept[key] = blank(field.shape)
            if key not in value:
                complaints.add(f"{key!r} is missing", path)
    return kept


def blank(shape: Shape) -> Any:
    """Something that fits the shape, to stand for a value that did not."""
    match shape:
        case Object(fields=fields):
            return {key: blank(field.shape) for key, field in fields.items() if field.required}
        case Named():
            return blank(shape.shape())
        case ListOf():
            return []
        case Choice(values=values):
            return values[0]
    return BLANK


def _unknown_key(key: str, fields: Mapping[str, Field], path: Path, complaints: Complaints) -> None:
    complaints.add(f"unknown key {key[:80]!r}; known are {', '.join(fields)}", (*path, key), key, fields)


def _wrong(wanted: str, value: Any, path: Path, complaints: Complaints, hint: str = "") -> Any:
    complaints.add(f"must be {wanted}, not {kind_of(value)}{hint}", path)
    return DROP


_CHECKS: Final[Mapping[type, Callable[[Any, Any, Path, Complaints], Any]]] = {
    Text: _text,
    Boolean: _boolean,
    Value: _value,
    Schema: _schema,
    Integer: _number,
    Number: _number,
    Choice: _choice,
    ListOf: _list,
    MapOf: _map,
    Either: _either,
    Named: _named,
    Object: _object,
}
