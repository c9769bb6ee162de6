import dataclasses
import datetime
import decimal
import enum
import math
import re
from collections.abc import Iterator
from typing import Any, Literal, NotRequired, TypedDict

import jsonschema_rs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.actions.decorator import ActionContext, ActionFailed, RetryAction, action
from knhk.actions.registry import (
    MARK,
    Action,
    Cancelled,
    Failed,
    Invocation,
    Outcome,
    RetryLater,
    Succeeded,
    WaitUntil,
)
from knhk.domain.expressions import Scope


def built(function: Any) -> Action:
    found = vars(function)[MARK]
    assert isinstance(found, Action)
    return found


class Item(msgspec.Struct):
    sku: str
    count: int = 1


class Customer(pydantic.BaseModel):
    email: str
    friends: list["Customer"] = []

    @pydantic.field_validator("email")
    @classmethod
    def _has_at(cls, value: str) -> str:
        if "@" not in value:
            raise ValueError("no @ in it")
        return value


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Order:
    items: list[Item]
    note: str | None = None


class Address(TypedDict):
    street: str
    zip: NotRequired[str]


def test_params_by_name_with_defaults_and_types(invoke: Any) -> None:
    @action("charge")
    def charge(amount: int, items: list[Item], currency: str = "EUR", tags: list[str] = ["a"]) -> dict[str, Any]:  # noqa: B006
        return {"amount": amount, "items": items, "currency": currency, "tags": tags}

    made = built(charge)
    assert made.mode == "thread"
    assert not made.traits.pure
    assert made.traits.guarantee == "at-least-once"
    outcome = made.run(invoke({"amount": 3, "items": [{"sku": "x"}]}))
    assert outcome == Succeeded({"amount": 3, "items": [{"sku": "x", "count": 1}], "currency": "EUR", "tags": ["a"]})
    assert charge(1, [], "USD")["currency"] == "USD"  # the function is as it was


def test_the_schema_stands_in_one_document(invoke: Any) -> None:
    @action("ship")
    def ship(items: list[Item], customer: Customer, address: Address, color: Color = Color.RED) -> Order: ...

    schema = built(ship).traits.params_schema
    assert schema is not None
    assert set(schema["properties"]) == {"items", "customer", "address", "color"}
    assert schema["additionalProperties"] is False
    validator = jsonschema_rs.validator_for(dict(schema), offline=True)
    good = {
        "items": [{"sku": "a"}],
        "customer": {"email": "a@b", "friends": [{"email": "c@d"}]},
        "address": {"street": "s"},
    }
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "customer": {"email": "a@b", "friends": [{"mail": 1}]}})
    assert not validator.is_valid({**good, "address": {}})
    assert not validator.is_valid({**good, "extra": 1})
    output = built(ship).traits.output_schema
    assert output is not None
    assert set(output["properties"]) == {"items", "note"}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "amount"),
        ({"amount": "3"}, r"`int`.*\$\.amount"),
        ({"amount": 1, "extra": 2}, "extra"),
        ([1], "object"),
        ("text", "object"),
        (None, "amount"),
    ],
)
async def test_wrong_params_fail_for_good(invoke: Any, params: Any, said: str) -> None:
    @action("sync")
    def one(amount: int) -> None: ...

    @action("async")
    async def two(amount: int) -> None: ...

    outcome = built(one).run(invoke(params))
    assert isinstance(outcome, Failed)
    assert outcome.code == "KNHK-ACTION-PARAMS"
    assert re.search(said, outcome.message)
    assert (await built(two).run(invoke(params))).code == "KNHK-ACTION-PARAMS"  # type: ignore[misc, union-attr]


def test_a_wrong_pydantic_model_tells_the_place_but_not_the_value(invoke: Any) -> None:
    @action("greet")
    def greet(customer: Customer) -> str:
        return customer.email

    outcome = built(greet).run(invoke({"customer": {"email": "top-secret"}}))
    assert isinstance(outcome, Failed)
    assert "email" in outcome.message
    assert "top-secret" not in outcome.message
    assert built(greet).run(invoke({"customer": {"email": "a@b"}})) == Succeeded("a@b")


@pytest.mark.parametrize(
    ("kind", "value", "back"),
    [
        (Any, {"a": [1]}, {"a": [1]}),
        (dict, {"a": 1}, {"a": 1}),
        (Order, {"items": [{"sku": "a"}], "note": None}, {"items": [{"sku": "a", "count": 1}], "note": None}),
        (Address, {"street": "s"}, {"street": "s"}),
        (Customer, {"email": "a@b"}, {"email": "a@b", "friends": []}),
        (list[Customer], [{"email": "a@b"}], [{"email": "a@b", "friends": []}]),
        (datetime.datetime, "2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        (decimal.Decimal, "1.50", "1.50"),
        (bytes, "aGk=", "aGk="),
        (Literal["a", "b"], "a", "a"),
        (int | None, None, None),
    ],
)
def test_all_params_as_one_value_of_any_type(invoke: Any, kind: Any, value: Any, back: Any) -> None:
    def echo(params): ...  # type: ignore[no-untyped-def]

    def whole(params: Any) -> Any:
        return params

    whole.__annotations__ = {"params": kind, "return": kind}
    made = built(action("echo")(whole))
    assert made.run(invoke(value)) == Succeeded(back)
    if made.traits.params_schema is not None:
        assert jsonschema_rs.is_valid(dict(made.traits.params_schema), value)
        assert made.traits.params_schema == made.traits.output_schema
    assert built(action("untyped")(echo)).traits.params_schema is None


async def test_the_context(invoke: Any) -> None:
    @action("one")
    async def one(params: dict[str, int], context: ActionContext) -> list[Any]:
        return [params, context.workflow_id, context.step, context.attempt, context.idempotency_key]

    @action("two")
    def two(who: ActionContext, amount: int = 1) -> Any:
        return [amount, who.dependencies, who.now_ns, who.workflow_name, who.traceparent]

    @action("three")
    def three(context) -> Any:  # type: ignore[no-untyped-def]
        return context.attempt

    assert built(one).mode == "async"
    given = invoke({"a": 1}, attempt=3)
    assert await built(one).run(given) == Succeeded([{"a": 1}, "wf-1", "charge", 3, "wf-1/charge"])  # type: ignore[misc]
    outcome = built(two).run(invoke({}, dependencies={"before": 7}, traceparent="00-a-b-01"))
    assert outcome == Succeeded([1, {"before": 7}, 1_700_000_000_000_000_000, "orders", "00-a-b-01"])
    assert built(three).run(invoke(None, attempt=5)) == Succeeded(5)
    assert built(two).traits.params_schema["properties"].keys() == {"amount"}  # type: ignore[index]


async def test_control_exceptions_become_outcomes(invoke: Any) -> None:
    @action("sync", inline=True)
    def sync(kind: str) -> None:
        if kind == "fail":
            raise ActionFailed("no card", "CARD", guard="has-card")
        if kind == "later":
            raise RetryAction("busy", after=1.5)
        if kind == "sometime":
            raise RetryAction("busy")
        raise KeyError(kind)

    @action("async")
    async def later() -> None:
        raise ActionFailed("never")

    made = built(sync)
    assert made.mode == "inline"
    assert made.run(invoke({"kind": "fail"})) == Failed("CARD", "no card", "has-card")
    assert made.run(invoke({"kind": "later"})) == RetryLater("KNHK-ACTION-RETRY", "busy", 1_500_000_000)
    assert made.run(invoke({"kind": "sometime"})) == RetryLater("KNHK-ACTION-RETRY", "busy", None)
    with pytest.raises(KeyError):
        made.run(invoke({"kind": "other"}))
    assert await built(later).run(invoke()) == Failed("KNHK-ACTION-FAILED", "never")  # type: ignore[misc]


def test_an_error_in_the_function_is_not_taken_for_wrong_params(invoke: Any) -> None:
    @action("parse")
    def parse() -> Any:
        return msgspec.convert("x", int)

    with pytest.raises(msgspec.ValidationError):
        built(parse).run(invoke())


@pytest.mark.parametrize("after", [-1, math.inf, math.nan])
def test_a_pause_is_a_number_of_seconds(after: float) -> None:
    with pytest.raises(ValueError, match="pause"):
        RetryAction("x", after=after)


@pytest.mark.parametrize(
    ("returned", "outcome"),
    [
        (Failed("A", "b"), Failed("A", "b")),
        (RetryLater("A", "b", 5), RetryLater("A", "b", 5)),
        (Cancelled(), Cancelled()),
        (WaitUntil(9, Item("x")), WaitUntil(9, {"sku": "x", "count": 1})),
        (Succeeded({1}), Succeeded([1])),
        (None, Succeeded(None)),
        ({1: "a"}, Succeeded({"1": "a"})),
    ],
)
def test_outcomes_and_values_can_be_returned(invoke: Any, returned: Any, outcome: Outcome) -> None:
    @action("give")
    def give() -> Any:
        return returned

    assert built(give).run(invoke()) == outcome


def test_what_cannot_be_stored_fails_for_good(invoke: Any) -> None:
    endless: list[Any] = []
    endless.append(endless)

    @action("give")
    def give(which: int) -> Any:
        return [object(), endless, lambda: 1][which]

    for which in range(3):
        outcome = built(give).run(invoke({"which": which}))
        assert isinstance(outcome, Failed)
        assert outcome.code == "KNHK-ACTION-OUTPUT"


def test_outcomes_do_not_show_in_the_output_schema() -> None:
    @action("a")
    def one() -> int | Failed: ...

    @action("b")
    def two() -> Outcome: ...

    @action("c")
    def three() -> None: ...

    assert built(one).traits.output_schema == {"type": "integer"}
    assert built(two).traits.output_schema is None
    assert built(three).traits.output_schema == {"type": "null"}


def test_a_schema_may_refer_to_itself() -> None:
    class Other: ...

    @action("tree")
    def tree(params: "Node") -> None: ...

    schema = built(tree).traits.params_schema
    assert schema is not None
    validator = jsonschema_rs.validator_for(dict(schema), offline=True)
    assert validator.is_valid({"children": [{"children": []}]})
    assert not validator.is_valid({"children": [{}]})


class Node(msgspec.Struct):
    children: list["Node"]


def test_what_cannot_be_an_action() -> None:
    class Custom: ...

    def stars(*values: int) -> None: ...
    def keywords(**values: int) -> None: ...
    def positional(a: int, /) -> None: ...
    def custom(a: Custom) -> None: ...
    def custom_output() -> Custom: ...
    def unknown(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def generator() -> Iterator[int]:
        yield 1

    def contexts(a: ActionContext, b: ActionContext) -> None: ...

    for function in (stars, keywords, positional, custom, custom_output, unknown, generator, contexts, Custom, 3):
        with pytest.raises(TypeError, match="'bad'"):
            action("bad")(function)  # type: ignore[type-var]

    async def asynchronous() -> None: ...

    with pytest.raises(TypeError, match="never inline"):
        action("bad", inline=True)(asynchronous)
    with pytest.raises(ValueError, match="guarantee"):
        action("x", guarantee="maybe")
    for name in ("", "a b", "1a", "x" * 129, "a\n"):
        with pytest.raises(ValueError, match="action name"):
            action(name)


def test_traits() -> None:
    @action("p", pure=True)
    def p() -> None: ...

    @action("q", guarantee="at-most-once")
    def q() -> None: ...

    assert (built(p).traits.pure, built(p).traits.guarantee) == (True, "exactly-once")
    assert built(q).traits.guarantee == "at-most-once"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def invocation(params: Any) -> Invocation:
    return Invocation("wf-1", "n", "s", 1, "wf-1/s", params, {}, Scope({}, {}, {}), 0)


@action("typed")
def typed(number: int, text: str = "", many: list[float] = [], item: Item | None = None) -> None:  # noqa: B006
    pass


@given(JSON)
def test_json_like_values_pass_through_unchanged(value: Any) -> None:
    @action("echo")
    def echo(params: Any) -> Any:
        return params

    assert built(echo).run(invocation(value)) == Succeeded(value)


@given(
    st.dictionaries(
        st.sampled_from(["number", "text", "many", "item", "other"]),
        JSON | st.integers() | st.lists(st.floats(allow_nan=False)) | st.fixed_dictionaries({"sku": st.text()}),
    )
)
def test_the_schema_and_the_conversion_agree(params: dict[str, Any]) -> None:
    schema = built(typed).traits.params_schema
    assert schema is not None
    accepted = built(typed).run(invocation(params)) == Succeeded(None)
    assert accepted == jsonschema_rs.is_valid(dict(schema), params)
