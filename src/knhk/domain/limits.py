"""How many runs of a kind may be under way, how often they may start, and which go first: as a descriptor says it."""

from typing import Final, Literal

import msgspec

from knhk.domain.errors import InvalidExpression, InvalidInputs, Problem
from knhk.domain.expressions import Scope, Template

OnLimit = Literal["queue", "cancel", "fail"]
DEFAULT_PRIORITY: Final = 50
HIGHEST_PRIORITY: Final = 100
LONGEST_KEY: Final = 255


class Concurrency(msgspec.Struct, frozen=True):
    """At most `limit` runs with the same key are under way; `on_limit` is what becomes of a further one."""

    limit: int
    on_limit: OnLimit = "queue"
    key: Template | None = None


class RateLimit(msgspec.Struct, frozen=True):
    """At most `limit` runs with the same key start within any `per_ns` nanoseconds; further ones wait."""

    limit: int
    per_ns: int
    key: Template | None = None


class Limits(msgspec.Struct, frozen=True):
    """The limits of a workflow. Among the runs of a department that wait, those of greater `priority` go first."""

    priority: int = DEFAULT_PRIORITY
    concurrency: Concurrency | None = None
    rate_limit: RateLimit | None = None


NO_LIMITS: Final = Limits()


def key_of(limit: Concurrency | RateLimit | None, where: str, name: str, scope: Scope) -> str:
    """The key under which a run counts: what the expression gives, or the workflow's name; none without a limit.

    Raises InvalidInputs if the expression gives nothing that can be a key.
    """
    if limit is None:
        return ""
    if limit.key is None:
        return name
    try:
        value = limit.key.evaluate(scope)
    except InvalidExpression as error:
        raise _no_key(where, error.message) from error
    if not isinstance(value, str | int | float) or value == "":
        raise _no_key(where, f"must give a text or a number, not {value!r:.80}")
    key = str(value)
    if len(key) > LONGEST_KEY:
        raise _no_key(where, f"is longer than {LONGEST_KEY} characters")
    return key


def _no_key(where: str, message: str) -> InvalidInputs:
    problem = Problem(message, f"spec.{where}.key")
    return InvalidInputs(str(problem), problems=[problem], hint="The key is an expression over the inputs.")
