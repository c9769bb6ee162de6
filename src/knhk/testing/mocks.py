"""What stands in for actions: fixed answers, failures, one answer after the other, or a function."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, Final, get_args

import msgspec

from knhk.actions.decorator import FAILED_CODE, RETRY_CODE, ActionFailed, RetryAction, controlled
from knhk.actions.registry import Failed, Outcome, RetryLater, Succeeded
from knhk.actions.schema import to_plain
from knhk.actions.transport import normalised

_OUTCOMES: Final = get_args(Outcome)
_INDEX: Final = re.compile(r"\[[0-9]+\]")


class Call(msgspec.Struct, frozen=True):
    """One attempt at a step. `at_s` is when it began, in seconds after the workflow was submitted."""

    action: str
    step: str
    attempt: int
    params: Any
    at_s: float
    idempotency_key: str
    dependencies: Mapping[str, Any] = {}


class Sequence(msgspec.Struct, frozen=True):
    """One mock for each call, the last for all further ones."""

    mocks: tuple[Any, ...]


Mock = Any
"""A value is the action's output; an Outcome or an exception is what it says; a function is called with the `Call` and
returns or raises any of these, and may be async."""


def returns(output: Any) -> Outcome:
    """Succeeds with this output, also where that is a function."""
    return Succeeded(output)


def fails(message: str = "mocked", code: str = FAILED_CODE) -> Outcome:
    """Fails for good."""
    return Failed(code, message)


def retries(message: str = "mocked", code: str = RETRY_CODE, after_s: float | None = None) -> Outcome:
    """Fails this attempt; the step's policy decides whether there is another."""
    return RetryLater(code, message, None if after_s is None else round(after_s * 1e9))


def sequence(*mocks: Mock) -> Sequence:
    """One mock for each call, the last for all further ones: `sequence(retries(), {"id": 7})`."""
    if not mocks:
        raise ValueError("a sequence needs at least one mock")
    return Sequence(mocks)


async def answer(mock: Mock, call: Call, number: int) -> Outcome:
    """What a mock says to the call with this number, counted from 0."""
    if isinstance(mock, Sequence):
        mock = mock.mocks[min(number, len(mock.mocks) - 1)]
    try:
        if callable(mock) and not isinstance(mock, type):
            mock = mock(call)
            if inspect.isawaitable(mock):
                mock = await mock
        if isinstance(mock, Exception):
            raise mock
        return mock if isinstance(mock, _OUTCOMES) else Succeeded(to_plain(mock))
    except (ActionFailed, RetryAction) as control:
        return controlled(control)
    except Exception as error:
        return normalised(error)


def find(mocks: Mapping[str, Mock], path: str) -> tuple[bool, Mock]:
    """The mock of a step by its path, or by its path without the numbers of a loop (`each[3]/pay` is `each/pay`)."""
    for name in (path, _INDEX.sub("", path)):
        if name in mocks:
            return True, mocks[name]
    return False, None
