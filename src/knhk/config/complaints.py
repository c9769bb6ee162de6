"""Turns what pydantic finds wrong into problems that name the key, the place and what may stand there."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from knhk.config import keys
from knhk.config.entries import Entry, Layer, Origin, Place
from knhk.config.keys import Key

_UNKNOWN = Origin("default")


def complain(error: ErrorDetails, entries: Mapping[str, Entry], layer: Layer) -> None:
    """Add the problem that an error stands for to a layer."""
    context: Mapping[str, Any] = error.get("ctx", {})
    location = tuple(context["key"].split(".")) if error["type"] == "contradiction" else error["loc"]
    key, place = _split(location)
    entry = entries.get(key.name) if key else None
    origin = _origin(entry, place)
    if key is None or error["type"] in ("contradiction", "missing"):
        layer.complain(_phrase(error, context), _path(location), origin)
        return
    secret, quoted = _is_secret(key, entry, place), error["type"] == "value_error"
    if quoted and entry is not None and entry.secrets:  # the message quotes the value itself
        layer.complain("has a value that cannot be used here", _path(location), origin)
        return
    shown = "" if quoted or secret else _got(error["input"])
    wanted = (
        tuple(context["expected"].replace("'", "").replace(" or ", ", ").split(", ")) if "expected" in context else ()
    )
    suggestion = keys.nearest(str(error["input"]), wanted) if shown and wanted else ""
    layer.complain(_phrase(error, context) + shown, _path(location), origin, suggestion)


def _split(location: tuple[str | int, ...]) -> tuple[Key | None, Place]:
    """The key that a location is in, and the place inside its value."""
    for length in range(len(location), 0, -1):
        name = ".".join(str(part) for part in location[:length])
        if name in keys.known():
            return keys.known()[name], location[length:]
    return None, ()


def _origin(entry: Entry | None, place: Place) -> Origin:
    if entry is None:
        return _UNKNOWN
    while place and place not in entry.inner:
        place = place[:-1]
    return entry.inner.get(place, entry.origin)


def _is_secret(key: Key, entry: Entry | None, place: Place) -> bool:
    """Whether the value at a place must not be shown: it holds a secret, or could have one inside."""
    filled = entry.secrets if entry else frozenset()
    inside = any(secret[: len(place)] == place for secret in filled)
    return inside or key.shape.secret or (key.shape.item is not None and key.shape.item.fields is not None)


def _path(location: tuple[str | int, ...]) -> str:
    """A location as people write it: `monitoring.alert_channels[0].service_key`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _got(value: object) -> str:
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return f", not {text[:80]}"


def _phrase(error: ErrorDetails, context: Mapping[str, Any]) -> str:
    match error["type"]:
        case "value_error":
            return str(context["error"])
        case "bool_type":
            return "must be true or false"
        case "int_type":
            return "must be a whole number"
        case "float_type" | "finite_number":
            return "must be a number"
        case "string_type" | "path_type":
            return "must be text"
        case "tuple_type":
            return "must be a list"
        case "string_too_short":
            return "must not be empty"
        case "literal_error":
            return f"must be {context['expected']}".replace("'", "")
        case "greater_than":
            return f"must be more than {context['gt']}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "missing":
            return "is missing"
        case _:
            return error["msg"]
