"""Errors that come from inside a task, and when a `try` runs its tasks again."""

import random
from collections.abc import Mapping
from typing import Any, Final

from knhk.actions.serverless.flow import ERROR_CODE, Fault, Turn
from knhk.domain.dsl.problem import standard_error
from knhk.domain.dsl.task import Retry
from knhk.domain.event import Failure

_TIMEOUTS: Final = frozenset({"KNHK-STEP-TIMEOUT", "KNHK-RUN-TIMEOUT"})
_BACKOFF_FACTOR: Final = 2
_LONGEST_PAUSE_NS: Final = 24 * 3600 * 1_000_000_000


def raised(turn: Turn, failure: Failure | None) -> Fault:
    """The error of a task inside: its own, or a standard one for a step that failed in another way."""
    if failure is None:
        return turn.fault("runtime", "the tasks were cancelled")
    if failure.code == ERROR_CODE and failure.problem:
        return Fault(failure.problem)
    kind = "timeout" if failure.code in _TIMEOUTS else "runtime"
    instance = f"/{failure.step}" if failure.step else turn.task.reference
    return Fault(standard_error(kind, f"{failure.code}: {failure.message}", instance=instance))


async def next_attempt_ns(
    turn: Turn, retry: Retry | None, memo: Mapping[str, Any], named: Mapping[str, Any]
) -> int | None:
    """When the next attempt begins (Unix time), or None if there is none."""
    now_ns, attempts = turn.invocation.now_ns, memo["attempts"]
    if retry is None or (retry.max_attempts and attempts > retry.max_attempts):
        return None
    if retry.when and not await turn.evaluate(retry.when, memo["input"], **named):
        return None
    if retry.except_when and await turn.evaluate(retry.except_when, memo["input"], **named):
        return None
    at_ns = now_ns + _pause_ns(retry, attempts, turn.invocation.idempotency_key)
    if retry.timeout_ns and at_ns >= memo["since_ns"] + retry.timeout_ns:
        return None
    return at_ns


def _pause_ns(retry: Retry, attempts: int, key: str) -> int:
    """The pause after so many attempts. The jitter is drawn from the task and the attempt, so a replay agrees."""
    match retry.backoff:
        case "constant":
            pause = retry.delay_ns
        case "linear":
            pause = retry.delay_ns * attempts
        case "exponential":
            pause = retry.delay_ns * _BACKOFF_FACTOR ** min(attempts - 1, 40)
    if retry.jitter_to_ns > retry.jitter_from_ns:
        pause += random.Random(f"{key}/{attempts}").randint(retry.jitter_from_ns, retry.jitter_to_ns)
    return min(pause, _LONGEST_PAUSE_NS)


__all__ = ["Fault", "next_attempt_ns", "raised"]
