from typing import Any

import pytest

from knhk.actions.registry import Failed, Succeeded
from knhk.actions.validate import _EXCERPT, MAX_ERRORS, run

OBJECT = {"type": "object", "required": ["amount"], "properties": {"amount": {"type": "integer", "minimum": 1}}}


def failed(outcome: Any) -> Failed:
    assert isinstance(outcome, Failed)
    return outcome


@pytest.mark.parametrize(
    ("params", "checked"),
    [
        ({"data": {"amount": 3}, "schema": OBJECT}, 1),
        ({"data": {"amount": 3}, "rules": ["data.amount > 2", "data.amount < inputs.limit"]}, 2),
        ({"data": {"amount": 3}, "schema": OBJECT, "rules": [{"name": "small", "rule": "data.amount < 5"}]}, 2),
        ({"data": None, "rules": ["data == null"]}, 1),
        ({"data": [1, 2], "rules": ["data.all(x, x > 0)", "run.name == 'orders'"]}, 2),
        ({"schema": True}, 1),
        ({"data": 1, "rules": []}, 0),
        (None, 0),
    ],
)
def test_data_that_are_as_they_should_be(invoke: Any, params: Any, checked: int) -> None:
    assert run(invoke(params)) == Succeeded({"valid": True, "checked": checked})


def test_the_outputs_of_the_dependencies_are_the_default(invoke: Any) -> None:
    given = {"fetch": {"amount": 5}}
    rules = ["data.fetch.amount == 5", "steps.fetch.output.amount == 5"]
    assert run(invoke({"rules": rules}, dependencies=given)) == Succeeded({"valid": True, "checked": 2})


def test_the_first_rule_that_does_not_hold_is_the_guard(invoke: Any) -> None:
    rules = ["data.a == 1", {"name": "positive", "rule": "data.b > 0", "message": "b must be positive"}, "false"]
    outcome = failed(run(invoke({"data": {"a": 1, "b": -1}, "rules": rules})))
    assert outcome.code == "KNHK-ACTION-INVALID"
    assert outcome.guard == "positive"
    assert outcome.message.startswith("b must be positive: rule 'positive' (data.b > 0) does not hold")
    assert '{"a":1,"b":-1}' in outcome.message
    assert failed(run(invoke({"data": 1, "rules": ["data > 1"]}))).guard == "data > 1"


def test_the_excerpt_is_short(invoke: Any) -> None:
    outcome = failed(run(invoke({"data": "x" * 10_000, "rules": ["data == ''"]})))
    assert len(outcome.message) < _EXCERPT + 100


def test_a_rule_that_cannot_be_evaluated_does_not_hold(invoke: Any) -> None:
    outcome = failed(run(invoke({"data": {}, "rules": ["data.amount > 0"]})))
    assert outcome.guard == "data.amount > 0"
    assert "could not be evaluated" in outcome.message


def test_a_rule_that_is_no_cel_is_a_mistake_in_the_params(invoke: Any) -> None:
    outcome = failed(run(invoke({"data": 1, "rules": ["data >"]})))
    assert outcome.code == "KNHK-ACTION-PARAMS"
    assert "data >" in outcome.message


def test_the_schema_lists_what_is_wrong(invoke: Any) -> None:
    outcome = failed(run(invoke({"data": {"amount": "3"}, "schema": OBJECT, "rules": ["false"]})))
    assert (outcome.code, outcome.guard) == ("KNHK-ACTION-INVALID", "schema")
    assert "/amount: " in outcome.message
    many = failed(run(invoke({"data": ["x"] * 50, "schema": {"items": {"type": "integer"}}})))
    assert many.message.count("; ") == MAX_ERRORS
    assert many.message.endswith("and more")


def test_formats_are_checked(invoke: Any) -> None:
    schema = {"type": "string", "format": "date-time"}
    assert isinstance(run(invoke({"data": "2026-01-31T12:00:00Z", "schema": schema})), Succeeded)
    assert failed(run(invoke({"data": "yesterday", "schema": schema}))).guard == "schema"


@pytest.mark.parametrize("target", ["http://127.0.0.1:9/s.json", "https://example.com/s", "file:///etc/hostname"])
def test_a_schema_is_never_fetched(invoke: Any, target: str) -> None:
    outcome = failed(run(invoke({"data": 1, "schema": {"$ref": target}})))
    assert outcome.code == "KNHK-ACTION-PARAMS"
    assert "disabled" in outcome.message


@pytest.mark.parametrize(
    "params",
    [
        {"schema": {"type": "objet"}},
        {"schema": 3},
        {"rules": "data > 1"},
        {"rules": [{"rule": "true"}]},
        {"rules": [{"name": "", "rule": "true"}]},
        {"rules": ["true"], "other": 1},
    ],
)
def test_wrong_params(invoke: Any, params: Any) -> None:
    assert failed(run(invoke(params))).code == "KNHK-ACTION-PARAMS"
