"""A plan that comes from another descriptor's shape is the plan that compiling would have given."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from knhk.actions.registry import Registry
from knhk.domain.compile import compile_descriptor
from knhk.domain.errors import InvalidDescriptor
from knhk.domain.plan import Plan
from knhk.domain.shapes import Shapes

ACTIONS = Registry.load().traits()
TEXTS = some.sampled_from(["a", "", "${{ inputs.x }}", "$${{ no }}", "b\u0000", "c" * 300, "R&D"])
VALUES = some.one_of(TEXTS, some.integers(-1, 3), some.lists(TEXTS, max_size=2))
PARAMS = some.none() | some.dictionaries(
    some.sampled_from(["output", "x", "y", "duration", "data"]), VALUES, max_size=3
)
STEPS = some.lists(
    some.fixed_dictionaries(
        {"action": some.sampled_from(["process", "validate", "wait", "http", "fail"])},
        optional={
            "params": PARAMS,
            "retries": some.integers(0, 2),
            "timeout": some.sampled_from(["1s", "2s", "bad"]),
            "when": some.sampled_from(["true", "inputs.x == 1"]),
        },
    ),
    min_size=1,
    max_size=3,
)
METADATA = some.fixed_dictionaries(
    {"name": TEXTS}, optional={"department": TEXTS, "labels": some.dictionaries(TEXTS, TEXTS, max_size=2)}
)
DESCRIPTORS = some.lists(some.tuples(METADATA, STEPS), min_size=2, max_size=6)


def compiled(text: bytes, shapes: Shapes | None) -> Plan | str:
    try:
        return compile_descriptor(
            text,
            ACTIONS,
            max_bytes=1 << 20,
            max_steps=100,
            default_timeout_ns=10**9,
            tick_ns=10**6,
            shapes=shapes,
        )
    except InvalidDescriptor as error:
        return str(error.problems)


def descriptor(metadata: dict[str, Any], steps: list[dict[str, Any]]) -> bytes:
    named = [{"name": f"s{at}", "depends_on": [f"s{at - 1}"] if at else [], **step} for at, step in enumerate(steps)]
    return json.dumps(
        {"apiVersion": "knhk/v1", "kind": "Workflow", "metadata": metadata, "spec": {"steps": named}}
    ).encode()


@given(DESCRIPTORS)
def test_with_shapes_and_without_the_plans_are_the_same(descriptors: list[tuple[Any, Any]]) -> None:
    shapes = Shapes()
    for metadata, steps in descriptors * 2:
        text = descriptor(metadata, steps)
        assert compiled(text, shapes) == compiled(text, None)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([{"action": "process", "params": {"x": 1}}], [{"action": "process"}]),
        ([{"action": "process"}], [{"action": "process", "params": {"x": 1}}]),
        ([{"action": "validate", "params": {"data": 1}}], [{"action": "validate"}]),
        ([{"action": "wait", "params": {"duration": "1s"}}], [{"action": "wait", "params": {"duratoin": "1s"}}]),
        ([{"action": "process", "params": {"x": "${{ inputs.a }}"}}], [{"action": "process", "params": {"x": "a"}}]),
        (
            [{"action": "process", "foreach": {"in": [1, 2]}, "params": {"x": 1}}],
            [{"action": "process", "foreach": {"in": [1, 2]}, "params": {"x": 2}}],
        ),
        (
            [{"steps": [{"name": "in", "action": "process", "params": {"x": 1}}]}],
            [{"steps": [{"name": "in", "action": "process", "params": {"x": 2}}]}],
        ),
        (
            [{"action": "process", "params": {"x": 1}, "compensate": {"action": "process", "params": {"x": 1}}}],
            [{"action": "process", "params": {"x": 1}, "compensate": {"action": "process", "params": {"x": 2}}}],
        ),
    ],
)
def test_params_that_come_and_go(first: list[Any], second: list[Any]) -> None:
    shapes = Shapes()
    for steps in (first, second, first):
        text = descriptor({"name": "w"}, steps)
        assert compiled(text, shapes) == compiled(text, None)
