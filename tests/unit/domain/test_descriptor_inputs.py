"""Inputs: defaults are filled in, and everything that does not match is said at once."""

from typing import Any

import pytest

from knhk.domain.compile import check_inputs, check_schema
from knhk.domain.errors import InvalidInputs
from knhk.domain.plan import Plan
from tests.unit.domain.test_descriptor import A, build, with_steps


def plan(inputs: str) -> Plan:
    return build(with_steps(A, spec=f"  inputs: {inputs}\n"))


def faults(declared: str, sent: Any) -> list[str]:
    with pytest.raises(InvalidInputs) as caught:
        check_inputs(plan(declared), sent)
    return sorted(str(problem) for problem in caught.value.problems)


def test_without_declared_inputs_everything_is_allowed() -> None:
    assert check_inputs(build(with_steps(A)), {"x": 1}) == {"x": 1}
    assert check_inputs(build(with_steps(A)), None) == {}


def test_defaults_are_filled_in_and_the_given_mapping_is_left_alone() -> None:
    sent = {"a": 1}
    assert check_inputs(plan("{a: {type: integer}, b: {default: [1]}, c: {default: null}}"), sent) == {
        "a": 1,
        "b": [1],
        "c": None,
    }
    assert sent == {"a": 1}


def test_everything_that_does_not_match_is_said() -> None:
    assert faults("{count: {type: integer}, name: {type: string}, more: true}", {"coutn": 1, "name": 5}) == [
        "inputs.name: 5 is not of type \"string\"",
        "inputs: the input 'count' is missing",
        "inputs: the input 'more' is missing",
        "inputs: there is no input 'coutn' (did you mean 'count'?)",
    ]  # fmt: skip


def test_one_schema_for_all_inputs() -> None:
    whole = "{type: object, properties: {a: {type: integer, default: 3}, b: {type: object}}, required: [b]}"
    assert check_inputs(plan(whole), {"b": {}, "other": 1}) == {"a": 3, "b": {}, "other": 1}
    assert faults(whole, {"b": {}, "a": "x"}) == ["inputs.a: \"x\" is not of type \"integer\""]  # fmt: skip


def test_places_within_a_value() -> None:
    schema = {"type": "object", "properties": {"a": {"items": {"type": "integer"}}}}
    assert [str(problem) for problem in check_schema(schema, {"a": [1, "x"]}, "output")] == [
        'output.a[1]: "x" is not of type "integer"'
    ]
    assert check_schema(schema, {"a": [1]}, "output") == []
    assert check_schema(True, 1, "output") == []
    assert "output" in str(check_schema({"type": "no"}, 1, "output")[0])


@pytest.mark.timeout(20)
def test_patterns_cannot_backtrack_for_ever() -> None:
    schema = {"type": "string", "pattern": r"^(?=(a+)+$)(a+)+b\1$"}
    assert check_schema(schema, "a" * 40, "output")
