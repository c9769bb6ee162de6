"""From Python types to JSON Schemas, and values to and from them.

Types are those that msgspec knows (builtins, dataclasses, TypedDicts, Structs, enums, dates, unions of them) and
pydantic models. Pydantic is recognised by its methods, so that it is not imported for those who do not use it.
"""

import copy
import types
from collections.abc import Mapping
from typing import Any, Final, Union, get_args, get_origin

import msgspec

_DEFINITIONS: Final = "#/$defs/"
_NO_JSON: Final = "values of {} have no JSON form"


def schema_of(kind: Any) -> dict[str, Any] | None:
    """The JSON Schema (2020-12) of a type, complete in itself; None if it allows anything.

    Raises:
        TypeError: there is no JSON for values of this type.
    """
    if kind is Any or kind is object:
        return None
    foreign: dict[str, Any] = {}

    def schema_hook(custom: type) -> dict[str, Any]:
        if not is_pydantic(custom):
            raise TypeError(_NO_JSON.format(custom.__qualname__))
        prefix = custom.__name__
        model: Any = custom
        schema: dict[str, Any] = model.model_json_schema(ref_template=f"{_DEFINITIONS}{prefix}.{{model}}")
        foreign.update({f"{prefix}.{name}": part for name, part in schema.pop("$defs", {}).items()})
        return schema

    schema = msgspec.json.schema(kind, schema_hook=schema_hook)
    if foreign:
        schema.setdefault("$defs", {}).update(foreign)
    return _inline_root(schema) or None


def to_type(value: Any, kind: Any) -> Any:
    """The value as this type. Raises msgspec.ValidationError, whose text names the place, if it does not fit."""
    return msgspec.convert(value, kind, dec_hook=_decode)


def to_plain(value: Any) -> Any:
    """The value as JSON-like data: dates, bytes (base64), sets and decimals as JSON has them.

    Raises:
        TypeError: there is no JSON form.
        RecursionError: the value contains itself.
    """
    return msgspec.to_builtins(value, str_keys=True, enc_hook=_encode)


def without(kind: Any, excluded: tuple[type, ...]) -> Any:
    """The type without the given members of its union; Any if nothing is left."""
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    left = [member for member in members if member not in excluded]
    if len(left) == len(members):
        return kind
    return Union[tuple(left)] if left else Any  # noqa: UP007  # built at run time, from a tuple


def is_pydantic(kind: Any) -> bool:
    """Whether this is a pydantic model (version 2)."""
    return isinstance(kind, type) and hasattr(kind, "model_validate") and hasattr(kind, "model_json_schema")


def _decode(kind: type, value: Any) -> Any:
    if not is_pydantic(kind):
        raise NotImplementedError(f"values of {kind.__qualname__} cannot be made from JSON")
    model: Any = kind
    try:
        return model.model_validate(value)
    except ValueError as error:
        raise ValueError(_pydantic_text(error)) from error


def _pydantic_text(error: Any) -> str:
    # Pydantic's own text repeats the value, which may be secret, over several lines.
    try:
        faults = error.errors(include_input=False, include_url=False)
        return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'value'}: {fault['msg']}" for fault in faults)
    except AttributeError:  # a validator raised a ValueError of its own
        return str(error)


def _encode(value: Any) -> Any:
    if is_pydantic(type(value)):
        return value.model_dump(mode="json")
    raise TypeError(_NO_JSON.format(type(value).__qualname__))


def _inline_root(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Put the definition to which the whole schema refers in its place, so that `properties` stands at the top."""
    result = copy.deepcopy(dict(schema))
    reference = result.get("$ref", "")
    if set(result) != {"$ref", "$defs"} or not reference.startswith(_DEFINITIONS):
        return result
    definitions = result["$defs"]
    root = dict(definitions[reference.removeprefix(_DEFINITIONS)])
    if not _refers(definitions, reference):
        del definitions[reference.removeprefix(_DEFINITIONS)]
    return {**root, "$defs": definitions} if definitions else root


def _refers(node: Any, reference: str) -> bool:
    if isinstance(node, dict):
        return node.get("$ref") == reference or any(_refers(part, reference) for part in node.values())
    return isinstance(node, list) and any(_refers(part, reference) for part in node)
