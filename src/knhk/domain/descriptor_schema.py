"""The JSON Schema (2020-12) of descriptors, for editors: completion, descriptions and most faults while typing.

Made from the shape against which descriptors are checked, so it has every key that is accepted and no other. What a
schema cannot say (cycles, unknown steps and actions, expressions) only the compiler checks.
"""

from typing import Any, Final

from knhk.domain.compile_steps import NAME
from knhk.domain.descriptor import SHAPE
from knhk.domain.descriptor_shape import (
    Boolean,
    Choice,
    Either,
    Field,
    Integer,
    ListOf,
    MapOf,
    Named,
    Number,
    Object,
    Schema,
    Shape,
    Text,
    Value,
)

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_IDENTIFIER: Final = "https://knhk.dev/schemas/workflow-v1.json"


def published_schema() -> dict[str, Any]:
    """The schema, complete in itself: it refers to nothing outside."""
    named: dict[str, Any] = {}
    schema = _of(SHAPE, named)
    step = named["step"]["properties"]
    step["name"]["pattern"] = f"^(?:{NAME.pattern})$"
    step["depends_on"]["uniqueItems"] = True
    schema["properties"]["spec"]["properties"]["steps"]["minItems"] = 1
    return {"$schema": _DIALECT, "$id": _IDENTIFIER, "title": "KNHK workflow", **schema, "$defs": named}


def _of(shape: Shape, named: dict[str, Any]) -> dict[str, Any]:
    """The schema of a shape; those that have a name go into `named`, once each."""
    match shape:
        case Text():
            return {"type": "string"}
        case Boolean():
            return {"type": "boolean"}
        case Value():
            return {}
        case Schema():
            return {"type": ["object", "boolean"]}
        case Integer(least=least, most=most):
            return {"type": "integer", "minimum": least, "maximum": most}
        case Number(least=least, most=most):
            return {"type": "number", "minimum": least, "maximum": most}
        case Choice(values=values):
            return {"enum": list(values)}
        case ListOf(item=item):
            return {"type": "array", "items": _of(item, named)}
        case MapOf(item=item):
            return {"type": "object", "additionalProperties": _of(item, named)}
        case Either(text=text, other=other):
            return {"anyOf": [_of(text, named), _of(other, named)]}
        case Named(name=name, shape=inner):
            if name not in named:
                named[name] = {}  # Known from here on: it may stand inside itself.
                named[name] |= _of(inner(), named)
            return {"$ref": f"#/$defs/{name}"}
        case Object(fields=fields, one_of=one_of):
            return {
                "type": "object",
                "properties": {key: _field(field, named) for key, field in fields.items()},
                "required": [key for key, field in fields.items() if field.required],
                "additionalProperties": False,
                **({"anyOf": [{"required": [key]} for key in one_of]} if one_of else {}),
            }


def _field(field: Field, named: dict[str, Any]) -> dict[str, Any]:
    """A key that is not required may also be empty, which YAML reads as null."""
    schema = {"description": field.description, **_of(field.shape, named)}
    if field.required or not schema.keys() & {"type", "enum"}:
        return schema
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    kind = schema["type"]
    return {**schema, "type": [*kind, "null"] if isinstance(kind, list) else [kind, "null"]}
