"""A workflow's inputs: the schema that `spec.inputs` stands for, and the check of what was sent against it."""

from collections.abc import Mapping
from typing import Any, Final

import jsonschema_rs

from knhk.domain.complaints import Complaints, Path, nearest
from knhk.domain.errors import InvalidInputs, Problem
from knhk.domain.json_schemas import MAX_PROBLEMS, error_places, errors_of, schema_fault, short
from knhk.domain.plan import Plan

_PATH: Final[Path] = ("spec", "inputs")
_NOTHING: Final[Mapping[str, Any]] = {}


def compile_inputs(declared: dict[str, Any] | None, complaints: Complaints) -> dict[str, Any] | None:
    """The JSON Schema of all inputs together; None if nothing is declared and everything is allowed.

    An input without `default` is required, and only declared ones may be sent. With `type: object` the mapping is that
    schema itself.
    """
    if declared is None:
        return None
    if declared.get("type") == "object":
        fault = schema_fault(declared)
        if fault:
            complaints.add(f"not a usable JSON Schema: {fault}", _PATH)
            return None
        properties = declared.get("properties", _NOTHING)
        for name, schema in properties.items():
            _check_default(schema, (*_PATH, "properties", name), complaints)
        return declared
    for name, schema in declared.items():
        _check_one(name, schema, complaints)
    return {
        "type": "object",
        "properties": declared,
        "required": [name for name, schema in declared.items() if not _has_default(schema)],
        "additionalProperties": False,
    }


def check_inputs(plan: Plan, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The inputs with defaults filled in. Raises InvalidInputs with everything that does not match."""
    filled = {} if inputs is None else dict(inputs)
    schema = plan.inputs_schema
    if schema is None:
        return filled
    properties = schema.get("properties", _NOTHING)
    for name, part in properties.items():
        if name not in filled and _has_default(part):
            filled[name] = part["default"]
    problems = [
        problem for error in errors_of(schema, filled, MAX_PROBLEMS) for problem in _problems(error, list(properties))
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidInputs(f"{problems[0]}{more}", problems=problems)
    return filled


def declared_names(schema: Mapping[str, Any] | None) -> frozenset[str] | None:
    """The names of the only inputs that there can be, None if there can be any."""
    if schema is None or schema.get("additionalProperties") is not False or "patternProperties" in schema:
        return None
    return frozenset(schema.get("properties", _NOTHING))


def _problems(error: jsonschema_rs.ValidationError | str, known: list[str]) -> list[Problem]:
    if isinstance(error, str):
        return [Problem(error, "inputs")]
    kind = error.kind
    if not error.instance_path:
        if isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
            return [
                Problem(f"there is no input {name[:80]!r}", "inputs", suggestion=nearest(name, known))
                for name in kind.unexpected[:MAX_PROBLEMS]
            ]
        if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
            return [Problem(f"the input {kind.property!r} is missing", "inputs")]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
    return [Problem(short(error.message), "inputs" + path)]


def _check_one(name: str, schema: Any, complaints: Complaints) -> None:
    path = (*_PATH, name)
    if not name.isprintable() or not 0 < len(name) <= 128:
        complaints.add("the name of an input has 1 to 128 printable characters", path)
    if not isinstance(schema, dict | bool):
        complaints.add("must be a JSON Schema, such as {type: string}", path)
    elif fault := schema_fault(schema):
        complaints.add(f"not a usable JSON Schema: {fault}", path)
    else:
        _check_default(schema, path, complaints)


def _check_default(schema: Any, path: Path, complaints: Complaints) -> None:
    if _has_default(schema):
        for message, where in error_places(schema, schema["default"]):
            complaints.add(f"the default does not match: {message}", (*path, "default", *where))


def _has_default(schema: Any) -> bool:
    return isinstance(schema, dict) and "default" in schema
