"""A JSON document, for descriptors that programs send. As strict as for YAML: no duplicate keys, finite numbers."""

import json
from collections.abc import Callable
from typing import Any, NoReturn

from knhk.domain.yaml_events import MAX_DEPTH, MAX_INT, MAX_VALUES, MIN_INT, Path, Places, Refused, read_yaml


def read_json(source: str) -> tuple[dict[str, Any], Callable[[], Places]]:
    """The value, and a function that finds the place of each part.

    Raises ValueError if the text is no JSON, and Refused if it is JSON that is not allowed.
    """
    try:
        value = _DECODER.decode(source)
    except RecursionError as error:
        raise Refused(f"nested more than {MAX_DEPTH} deep", 1, 1) from error
    if type(value) is not dict:
        raise ValueError("not an object")
    _check(value, source)
    return value, lambda: _places(source)


def _places(source: str) -> Places:
    # JSON is YAML but for odd corners, such as escaped surrogate pairs; then the places are not known.
    try:
        return read_yaml(source)[1]
    except Refused:
        return {(): (1, 1)}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Refused(f"the key {key!r} is here twice", 0, 0)
    return value


def _constant(name: str) -> NoReturn:
    raise Refused(f"{name} is not allowed: numbers must be finite", 0, 0)


def _integer(digits: str) -> int:
    if len(digits) <= 20 and MIN_INT <= (value := int(digits)) <= MAX_INT:
        return value
    raise Refused(f"the integer {digits[:40]} does not fit in 64 bits", 0, 0)


def _float(digits: str) -> float:
    value = float(digits)
    if value - value == 0.0:
        return value
    raise Refused(f"the number {digits[:40]} is too large", 0, 0)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float)


def _check(value: dict[str, Any], source: str) -> None:
    """Depth, number of values, and text that is no Unicode (half of a surrogate pair)."""
    count = 0
    stack: list[tuple[Any, int, Path]] = [(value, 1, ())]
    while stack:
        part, depth, path = stack.pop()
        count += 1
        if isinstance(part, dict | list):
            if depth > MAX_DEPTH:
                raise Refused(f"nested more than {MAX_DEPTH} deep", 0, 0)
            stack.extend((one, depth + 1, path) for one in (part.values() if isinstance(part, dict) else part))
            count += len(part) if isinstance(part, dict) else 0
    if count > MAX_VALUES:
        raise Refused(f"more than {MAX_VALUES} values", 0, 0)
    if "\\u" in source:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise Refused("a text holds half of a surrogate pair", 0, 0) from error
