"""Payloads: equal values have equal bytes."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.domain import payload
from knhk.domain.errors import InvalidInput

leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=9)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)


def shuffled(value: Any, data: st.DataObject) -> Any:
    """An equal value whose dictionaries were filled in another order."""
    match value:
        case dict():
            order = data.draw(st.permutations(list(value)))
            return {key: shuffled(value[key], data) for key in order}
        case list():
            return [shuffled(one, data) for one in value]
        case _:
            return value


@given(values, st.data())
def test_the_order_of_a_dictionary_does_not_show(value: Any, data: st.DataObject) -> None:
    assert payload.encode(shuffled(value, data)) == payload.encode(value)


@given(values)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    back = payload.decode(payload.encode(value))
    assert back == value
    assert type(back) is type(value)


@given(values, values)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    same = payload.digest(payload.encode(one)) == payload.digest(payload.encode(other))
    assert same == (repr(_plain(one)) == repr(_plain(other)))


def _plain(value: Any) -> Any:
    """A value with dictionaries in one order, for a comparison that tells 1, 1.0 and True apart."""
    match value:
        case dict():
            return {key: _plain(value[key]) for key in sorted(value, key=lambda key: key.encode())}
        case list():
            return [_plain(one) for one in value]
        case _:
            return value


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, {1, object}, object(), "\ud800", {"a": [1j]}])
def test_what_has_no_bytes_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput):
        payload.encode(value)


def test_a_value_that_is_too_deep_is_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidInput):
        payload.encode(deep)


def test_not_a_number_has_bytes_too() -> None:
    assert math.isnan(payload.decode(payload.encode(math.nan)))
