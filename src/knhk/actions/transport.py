"""An attempt on its way to another process and back: what that process is given, and what it reports."""

from collections.abc import Mapping
from typing import Any, Final, Literal, assert_never

import msgspec

from knhk.actions.registry import (
    Action,
    Cancelled,
    Enter,
    Failed,
    Invocation,
    Outcome,
    RetryLater,
    StartWorkflow,
    Succeeded,
    WaitFor,
    WaitUntil,
)
from knhk.domain.errors import KnhkError
from knhk.domain.expressions import Scope

ERROR_CODE: Final = "KNHK-ACTION-ERROR"
CANCELLED_CODE: Final = "KNHK-ACTION-CANCELLED"
_LONGEST_MESSAGE: Final = 2000


class Assignment(msgspec.Struct, frozen=True):
    """An invocation without what only the server has, as JSON-like data."""

    workflow_id: str
    workflow_name: str
    step: str
    attempt: int
    idempotency_key: str
    action: str
    params: Any = None
    dependencies: Mapping[str, Any] = {}
    now_ns: int = 0
    traceparent: str = ""

    def invocation(self) -> Invocation:
        """What the action is called with. Its scope is empty: only `validate` reads one, and never runs elsewhere."""
        return Invocation(
            workflow_id=self.workflow_id,
            workflow_name=self.workflow_name,
            step=self.step,
            attempt=self.attempt,
            idempotency_key=self.idempotency_key,
            params=self.params,
            dependencies=self.dependencies,
            scope=Scope({}, {}, {}),
            now_ns=self.now_ns,
            traceparent=self.traceparent,
        )


def assignment_of(action: str, invocation: Invocation) -> Assignment:
    """What another process must know to perform the attempt."""
    return Assignment(
        workflow_id=invocation.workflow_id,
        workflow_name=invocation.workflow_name,
        step=invocation.step,
        attempt=invocation.attempt,
        idempotency_key=invocation.idempotency_key,
        action=action,
        params=invocation.params,
        dependencies=invocation.dependencies,
        now_ns=invocation.now_ns,
        traceparent=invocation.traceparent,
    )


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """An outcome as data. Which fields count depends on `kind`, as in the outcome of that name."""

    kind: Literal["succeeded", "failed", "retry", "wait", "cancelled"]
    output: Any = None
    code: str = ""
    message: str = ""
    guard: str = ""
    after_ns: int | None = None
    fire_at_ns: int = 0


def report_of(outcome: Outcome) -> Report:
    """The outcome as data."""
    match outcome:
        case Succeeded(output=output):
            return Report("succeeded", output)
        case Failed(code=code, message=message, guard=guard):
            return Report("failed", code=code, message=message, guard=guard)
        case RetryLater(code=code, message=message, after_ns=after_ns):
            return Report("retry", code=code, message=message, after_ns=after_ns)
        case WaitUntil(fire_at_ns=fire_at_ns, output=output):
            return Report("wait", output, fire_at_ns=fire_at_ns)
        case WaitFor() | StartWorkflow():
            return Report("failed", code="KNHK-ACTION-OUTPUT", message="only built-in actions may wait for others")
        case Cancelled():
            return Report("cancelled")
        case Enter():
            return Report("failed", code=ERROR_CODE, message="only an action of the server itself can run blocks")
        case _:
            assert_never(outcome)


def outcome_of(report: Report) -> Outcome:
    """The outcome that was reported."""
    match report.kind:
        case "succeeded":
            return Succeeded(report.output)
        case "failed":
            return Failed(report.code, short(report.message), report.guard)
        case "retry":
            return RetryLater(report.code, short(report.message), report.after_ns)
        case "wait":
            return WaitUntil(report.fire_at_ns, report.output)
        case "cancelled":
            return Cancelled()


def run_blocking(action: Action, invocation: Invocation) -> Outcome:
    """Run an action that is not a coroutine; what it raises is an outcome too."""
    try:
        return action.run(invocation)  # type: ignore[return-value]  # mode says that it is no coroutine
    except Exception as error:
        return normalised(error)


def normalised(error: Exception) -> Outcome:
    """An exception as an outcome: KNHK's own say whether another attempt can help, with anything else it may."""
    if isinstance(error, KnhkError):
        kind = RetryLater if error.retryable else Failed
        return kind(error.code, short(error.message))
    return RetryLater(ERROR_CODE, short(f"{type(error).__name__}: {error}"))


def short(message: str) -> str:
    """A message that fits into a receipt."""
    return message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 1] + "…"
