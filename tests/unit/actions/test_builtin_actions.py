"""process, wait and fail; validate and http have files of their own."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk.actions import builtin
from knhk.actions.fail import run as fail
from knhk.actions.process import run as process
from knhk.actions.registry import Failed, RetryLater, Succeeded, WaitUntil
from knhk.actions.wait import run as wait
from knhk.actions.wait import unix_ns

NOW = 1_700_000_000_000_000_000


@pytest.mark.parametrize("name", builtin.__all__)
def test_the_schemas_are_schemas(name: str) -> None:
    schema = getattr(builtin, name).traits.params_schema
    if name == "PROCESS":
        assert schema is None
    else:
        assert schema["additionalProperties"] is False
        jsonschema_rs.meta.validate(dict(schema))


@pytest.mark.parametrize(
    ("params", "output"),
    [
        ({"output": 3, "other": 4}, 3),
        ({"output": None}, None),
        ({"a": 1}, {"a": 1}),
        (None, None),
        ([1, 2], [1, 2]),
        ("output", "output"),
    ],
)
def test_process(invoke: Any, params: Any, output: Any) -> None:
    assert process(invoke(params)) == Succeeded(output)


@pytest.mark.parametrize(
    ("params", "at", "output"),
    [
        ({"duration": "5s"}, NOW + 5_000_000_000, None),
        ({"duration": "0s", "output": {"a": 1}}, NOW, {"a": 1}),
        ({"duration": "1h30m"}, NOW + 5400 * 10**9, None),
        ({"until": "2023-11-14T22:13:21Z"}, NOW + 10**9, None),
        ({"until": "2023-11-15T00:13:20.5+02:00"}, NOW + 5 * 10**8, None),
        ({"until": "2023-11-14t22:13:20z"}, NOW, None),
        ({"until": "1960-01-01T00:00:00Z"}, 0, None),
    ],
)
def test_wait(invoke: Any, params: Any, at: int, output: Any) -> None:
    assert wait(invoke(params)) == WaitUntil(at, output)


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"duration": "5s", "until": "2023-11-14T22:13:21Z"},
        {"duration": "5"},
        {"duration": 5},
        {"duration": "-5s"},
        {"duration": "106000d"},
        {"until": "2023-11-14T22:13:21"},
        {"until": "2023-11-14"},
        {"until": "2023-02-30T00:00:00Z"},
        {"until": "2263-01-01T00:00:00Z"},
        {"until": "tomorrow"},
        {"until": "2023-11-14T22:13:21Z\n"},
        {"wait": "5s"},
    ],
)
def test_wait_refuses_what_is_no_time(invoke: Any, params: Any) -> None:
    outcome = wait(invoke(params))
    assert isinstance(outcome, Failed)
    assert outcome.code == "KNHK-ACTION-PARAMS"
    assert outcome.message.startswith("wait: ")


@given(
    st.integers(0, 9_000_000_000_000_000),
    st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
def test_every_timestamp_is_read_exactly(microseconds: int, zone: timezone) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=1, microseconds=microseconds)
    assert unix_ns(moment.astimezone(zone).isoformat()) == (86_400_000_000 + microseconds) * 1000


@pytest.mark.parametrize(
    ("params", "attempt", "outcome"),
    [
        (None, 1, Failed("KNHK-ACTION-FAILED", "the workflow says so")),
        ({"message": "no", "code": "X"}, 1, Failed("X", "no")),
        ({"message": "no", "retryable": True}, 9, RetryLater("KNHK-ACTION-FAILED", "no")),
        ({"message": "no", "until_attempt": 3}, 2, RetryLater("KNHK-ACTION-FAILED", "no")),
        ({"message": "no", "until_attempt": 3}, 3, Succeeded({"attempt": 3})),
        ({"until_attempt": 3}, 4, Succeeded({"attempt": 4})),
    ],
)
def test_fail(invoke: Any, params: Any, attempt: int, outcome: Any) -> None:
    assert fail(invoke(params, attempt=attempt)) == outcome


@pytest.mark.parametrize(
    "params", [{"until_attempt": 0}, {"code": ""}, {"until_attempt": 2, "retryable": True}, {"mesage": "x"}, [1]]
)
def test_fail_refuses_wrong_params(invoke: Any, params: Any) -> None:
    outcome = fail(invoke(params))
    assert isinstance(outcome, Failed)
    assert outcome.code == "KNHK-ACTION-PARAMS"
