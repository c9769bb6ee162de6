"""JSON Schema (2020-12 unless `$schema` says otherwise): schemas checked, values checked, validators kept.

Nothing is ever fetched: a `$ref` that leaves the schema is an error. Patterns run with a bound on backtracking.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import jsonschema_rs
import msgspec

from knhk.domain.errors import Problem

MAX_PROBLEMS: Final = 20
MAX_SCHEMA_BYTES: Final = 262_144
_EXCERPT: Final = 200
_PATTERNS: Final = jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000, size_limit=1 << 20, dfa_size_limit=1 << 20)

JsonSchema = Mapping[str, Any] | bool


def schema_fault(schema: JsonSchema) -> str:
    """What is wrong with a schema, nothing if it is usable."""
    try:
        _compiled(schema)
    except ValueError as error:
        return short(str(error).partition("\n")[0]) or "not a JSON Schema"
    return ""


def matches(schema: JsonSchema, value: Any) -> bool:
    """Whether a value matches, which costs about 1 us; False too if the schema is not usable."""
    try:
        return _compiled(schema).is_valid(value)
    except (ValueError, OverflowError, TypeError, RecursionError):
        return False


def check_schema(schema: JsonSchema, value: Any, what: str) -> list[Problem]:
    """All the places (at most MAX_PROBLEMS) at which a value does not match. `what` leads the path of each.

    A schema that is not usable is a problem too.
    """
    return [Problem(message, what + _written(path)) for message, path in error_places(schema, value)]


def error_places(schema: JsonSchema, value: Any) -> list[tuple[str, tuple[str | int, ...]]]:
    """As check_schema, but each problem as its message and its path within the value."""
    return [
        (error, ()) if isinstance(error, str) else (short(error.message), tuple(error.instance_path))
        for error in errors_of(schema, value, MAX_PROBLEMS)
    ]


def errors_of(schema: JsonSchema, value: Any, most: int) -> list[jsonschema_rs.ValidationError | str]:
    """The first errors of a value; a text if it could not be checked at all."""
    try:
        validator = _compiled(schema)
        return [] if validator.is_valid(value) else list(islice(validator.iter_errors(value), most))
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        return [short(str(error).partition("\n")[0])]


def _compiled(schema: JsonSchema) -> jsonschema_rs.Validator:
    """The validator of a schema. Raises ValueError if it is not usable."""
    kept = _BY_IDENTITY.get(id(schema))
    if kept is not None and kept[0] is schema:
        return kept[1]
    raw = msgspec.json.encode(schema, order="deterministic")
    if len(raw) > MAX_SCHEMA_BYTES:
        raise ValueError(f"the schema is too large: {len(raw)} bytes; at most {MAX_SCHEMA_BYTES} are allowed")
    validator = _validator(raw)
    if len(_BY_IDENTITY) >= _KEPT:
        _BY_IDENTITY.clear()
    _BY_IDENTITY[id(schema)] = (schema, validator)
    return validator


_KEPT: Final = 512
# By identity first, since encoding a schema costs more than checking a small value. The schema is held with it, so
# that its identity cannot pass to another one.
_BY_IDENTITY: Final[dict[int, tuple[JsonSchema, jsonschema_rs.Validator]]] = {}


@lru_cache(maxsize=512)
def _validator(raw: bytes) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        msgspec.json.decode(raw), validate_formats=True, offline=True, pattern_options=_PATTERNS
    )


def _written(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def short(text: str) -> str:
    """A message cut to a length that can be shown and stored."""
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "..."
