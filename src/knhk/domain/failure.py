"""Why something failed: the part of an event that people and expressions look at."""

from collections.abc import Mapping
from typing import Any

import msgspec


class Failure(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Why an attempt or a run failed. `guard` names the rule, invariant or covenant that was violated, if one was.

    `problem` is the failure as RFC 9457 problem details, where the workflow itself raised or may handle it.
    """

    code: str
    message: str
    guard: str = ""
    step: str = ""
    problem: Mapping[str, Any] = {}


def is_final(failure: Failure) -> bool:
    """Whether nothing may make up for a failure: a covenant was broken, and no later step runs."""
    return failure.code.startswith("KNHK-COVENANT-")


def error_variable(failure: Failure, path: str, attempt: int) -> dict[str, Any]:
    """What expressions see of a failure."""
    return {"code": failure.code, "message": failure.message, "step": failure.step or path, "attempt": attempt}
