"""`fail`: fail on purpose, to end a workflow or to try out its retries."""

from typing import Annotated, Final

import msgspec

from knhk.actions.decorator import FAILED_CODE
from knhk.actions.parameters import parse, wrong
from knhk.actions.registry import Action, Failed, Invocation, Outcome, RetryLater, Succeeded
from knhk.actions.schema import schema_of
from knhk.domain.plan import ActionTraits

NAME: Final = "fail"


class FailParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the failure says, and whether it is for good."""

    message: str = "the workflow says so"
    code: Annotated[str, msgspec.Meta(min_length=1)] = FAILED_CODE
    retryable: bool = False
    until_attempt: Annotated[int, msgspec.Meta(ge=1)] | None = None


def run(invocation: Invocation) -> Outcome:
    """Fails for good; or for now if `retryable`, or if `until_attempt` is not reached, when it succeeds."""
    params = parse(invocation, NAME, FailParams)
    if isinstance(params, Failed):
        return params
    if params.until_attempt is not None:
        if params.retryable:
            return wrong(NAME, "`retryable` and `until_attempt` exclude each other")
        if invocation.attempt >= params.until_attempt:
            return Succeeded({"attempt": invocation.attempt})
    if params.retryable or params.until_attempt is not None:
        return RetryLater(params.code, params.message)
    return Failed(params.code, params.message)


TRAITS: Final = ActionTraits(
    NAME, pure=True, guarantee="exactly-once", params_schema=schema_of(FailParams), reads_dependencies=False
)
ACTION: Final = Action(TRAITS, "inline", run, __name__, about="fails on purpose")
