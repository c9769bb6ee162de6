"""The published schema: it accepts what the compiler accepts, and has every key."""

from typing import Any

import jsonschema_rs
import msgspec
import pytest

from knhk.domain.descriptor import (
    CasePart,
    CatchPart,
    CompensatePart,
    DependencyPart,
    Descriptor,
    ForeachPart,
    HandlerPart,
    InvariantPart,
    LoopPart,
    MetadataPart,
    ParallelPart,
    RetryPart,
    SpecPart,
    StepPart,
)
from knhk.domain.descriptor_schema import published_schema
from knhk.domain.document import read
from tests.unit.domain.test_descriptor import FULL, GUIDE, with_steps

VALIDATOR = jsonschema_rs.Draft202012Validator(published_schema(), offline=True)


@pytest.mark.parametrize("text", [GUIDE, FULL, with_steps("name: a, action: b, params: , depends_on: ")])
def test_valid_descriptors_match(text: bytes) -> None:
    VALIDATOR.validate(read(text, max_bytes=10**6).value)


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        GUIDE.replace(b"Sigma", b"sigma"),
        GUIDE.replace(b"name: step1", b"name: 1step"),
        GUIDE.replace(b"retries: 3", b"retry: 3"),
        GUIDE.replace(b"timeout", b"timeuot"),
    ],
)
def test_invalid_descriptors_do_not(text: bytes) -> None:
    assert not VALIDATOR.is_valid(read(text, max_bytes=10**6).value)


def keys(kind: type) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


def test_every_key_is_in_it_with_a_description() -> None:
    schema = published_schema()
    spec = schema["properties"]["spec"]["properties"]
    step = schema["$defs"]["step"]
    assert spec["steps"]["items"] == {"$ref": "#/$defs/step"}
    places: list[tuple[dict[str, Any], type]] = [
        (schema, Descriptor),
        (schema["properties"]["metadata"], MetadataPart),
        (schema["properties"]["spec"], SpecPart),
        (step, StepPart),
        (step["properties"]["retry"], RetryPart),
        (step["properties"]["depends_on"]["items"]["anyOf"][1], DependencyPart),
        (step["properties"]["switch"]["items"], CasePart),
        (step["properties"]["parallel"], ParallelPart),
        (step["properties"]["foreach"], ForeachPart),
        (step["properties"]["while"], LoopPart),
        (step["properties"]["until"], LoopPart),
        (step["properties"]["catch"], CatchPart),
        (step["properties"]["compensate"], CompensatePart),
        (spec["on_failure"], HandlerPart),
        (spec["finally"], HandlerPart),
        (spec["retry"], RetryPart),
        (spec["invariants"]["items"]["anyOf"][1], InvariantPart),
    ]
    for place, kind in places:
        assert set(place["properties"]) == keys(kind)
        assert all(field["description"] for field in place["properties"].values())
