"""`wait_for` and `approval`: let a step wait for somebody else. The engine keeps the wait, durably."""

from typing import Annotated, Any, Final, Literal

import msgspec

from knhk.actions.parameters import parse, wrong
from knhk.actions.registry import Action, Failed, Invocation, Outcome, WaitFor
from knhk.actions.schema import schema_of
from knhk.domain.plan import ActionTraits
from knhk.domain.units import parse_duration_ns

WAIT_FOR: Final = "wait_for"
APPROVAL: Final = "approval"
LONGEST: Final = 255
MOST_APPROVERS: Final = 100
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST)]


class WaitForParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which event, of those with which correlation, and for how long (`2h`, `7d`; for ever if nothing is said)."""

    event: Name
    correlate: str | int | None = None
    timeout: str | None = None


class ApprovalParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may approve (all if none are named), how many of them must, until when, and what they are asked."""

    approvers: Annotated[list[Name], msgspec.Meta(max_length=MOST_APPROVERS)] = []
    required: Annotated[int, msgspec.Meta(ge=1, le=MOST_APPROVERS)] = 1
    timeout: str | None = None
    message: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    on_reject: Literal["fail", "continue"] = "fail"


def wait_for(invocation: Invocation) -> Outcome:
    """Waits for an event."""
    params = parse(invocation, WAIT_FOR, WaitForParams)
    if isinstance(params, Failed):
        return params
    correlate = "" if params.correlate is None else str(params.correlate)
    if len(correlate) > LONGEST:
        return wrong(WAIT_FOR, f"`correlate` is longer than {LONGEST} characters")
    until_ns = _until_ns(WAIT_FOR, params.timeout, invocation)
    if isinstance(until_ns, Failed):
        return until_ns
    return WaitFor("event", until_ns, params.event, correlate)


def approval(invocation: Invocation) -> Outcome:
    """Waits for people."""
    params = parse(invocation, APPROVAL, ApprovalParams)
    if isinstance(params, Failed):
        return params
    approvers = tuple(dict.fromkeys(params.approvers))
    if approvers and len(approvers) < params.required:
        return wrong(APPROVAL, f"{params.required} must approve, and only {len(approvers)} may")
    until_ns = _until_ns(APPROVAL, params.timeout, invocation)
    if isinstance(until_ns, Failed):
        return until_ns
    return WaitFor(
        "approval",
        until_ns,
        approvers=approvers,
        required=params.required,
        on_reject=params.on_reject,
        message=params.message,
    )


def _until_ns(name: str, timeout: str | None, invocation: Invocation) -> Any:
    """When the wait is over, 0 for never; the step's failure if the timeout is no duration."""
    if timeout is None:
        return 0
    try:
        return invocation.now_ns + parse_duration_ns(timeout)
    except ValueError as error:
        return wrong(name, f"`timeout`: {error}")


def _traits(name: str, params: type[msgspec.Struct]) -> ActionTraits:
    schema = schema_of(params)
    return ActionTraits(name, pure=True, guarantee="exactly-once", params_schema=schema, reads_dependencies=False)


WAIT_FOR_ACTION: Final = Action(
    _traits(WAIT_FOR, WaitForParams), "inline", wait_for, __name__, about="waits for an event"
)
APPROVAL_ACTION: Final = Action(
    _traits(APPROVAL, ApprovalParams), "inline", approval, __name__, about="waits for people"
)
