"""The params of the built-in actions: each declares a Struct, from which both its schema and its checks come."""

from typing import Final, TypeVar

import msgspec

from knhk.actions.registry import Failed, Invocation
from knhk.actions.schema import to_type

PARAMS_CODE: Final = "KNHK-ACTION-PARAMS"
NOT_ALLOWED_CODE: Final = "KNHK-ACTION-NOT-ALLOWED"
Params = TypeVar("Params", bound=msgspec.Struct)


def parse(invocation: Invocation, name: str, kind: type[Params]) -> Params | Failed:
    """The params as this Struct, or the failure of the step if they do not fit. No params are the same as `{}`."""
    try:
        return to_type({} if invocation.params is None else invocation.params, kind)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        return Failed(PARAMS_CODE, f"{name}: {error}")


def wrong(name: str, reason: str) -> Failed:
    """The failure of a step whose params do not make sense together."""
    return Failed(PARAMS_CODE, f"{name}: {reason}")
