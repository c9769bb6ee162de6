"""What an error looks like to an HTTP client: RFC 9457 problem details. The one table from errors to statuses.

Every face that speaks HTTP uses it. Members besides the standard's `type`, `title`, `status` and `detail`: `code`
(stable, see docs/errors.md), `retryable` (the same request may succeed later), `hint` (what to do next) and `problems`
(each place that is wrong in an input).
"""

import math
from typing import Any, Final

from knhk.domain import errors
from knhk.domain.errors import KnhkError, Problem

MEDIA_TYPE: Final = "application/problem+json"
PAGE: Final = "https://github.com/knhk/knhk/blob/main/docs/errors.md"
INTERNAL: Final = 500
_DEFAULT_RETRY_AFTER_S: Final = 1.0

# The nearest class in the error's ancestry counts. 400 is for a request that cannot be read, 422 for one that can be
# read and whose content does not validate (RFC 9110, 15.5.21).
STATUSES: Final[dict[type[KnhkError], int]] = {
    errors.InvalidInput: 400,
    errors.InvalidDescriptor: 422,
    errors.InvalidInputs: 422,
    errors.InvalidExpression: 422,
    errors.PayloadTooLarge: 413,
    errors.Refused: 403,
    errors.Overloaded: 429,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Unavailable: 503,
    errors.Unsupported: 501,
    errors.Corrupt: 500,
    KnhkError: INTERNAL,
}


def status_of(error: KnhkError) -> int:
    """The HTTP status of an error."""
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


def type_url(code: str) -> str:
    """The page that explains an error code."""
    return f"{PAGE}#{code.lower()}"


def problem_of(error: KnhkError) -> tuple[int, dict[str, Any]]:
    """Status and problem details of an error, ready to be encoded as JSON."""
    status = status_of(error)
    problem: dict[str, Any] = {
        "type": type_url(error.code),
        "title": error.title,
        "status": status,
        "detail": _encodable(error.message),
        "code": error.code,
        "retryable": error.retryable,
    }
    if error.advice:
        problem["hint"] = _encodable(error.advice)
    if error.problems:
        problem["problems"] = [_place(one) for one in error.problems]
    return status, problem


def problem_of_status(status: int, title: str, detail: str) -> dict[str, Any]:
    """Problem details of what a web framework refuses before our code sees it: there is no code, the status tells."""
    return {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": _encodable(detail),
        "retryable": status in (429, 503),
    }


def retry_after(error: KnhkError) -> str | None:
    """The value of the Retry-After header in whole seconds, at least 1; None if it makes no sense to try again."""
    seconds = error.retry_after_s
    if seconds is None:
        if not error.retryable:
            return None
        seconds = _DEFAULT_RETRY_AFTER_S
    return str(max(1, math.ceil(seconds)))


def _place(problem: Problem) -> dict[str, Any]:
    place: dict[str, Any] = {"message": _encodable(problem.message)}
    if problem.path:
        place["path"] = _encodable(problem.path)
    if problem.line:
        place["line"] = problem.line
        place["column"] = problem.column
    if problem.suggestion:
        place["suggestion"] = _encodable(problem.suggestion)
    return place


def _encodable(text: str) -> str:
    """Messages quote what was sent, and a lone surrogate in it must not make the answer itself fail."""
    return text.encode("utf-8", "replace").decode("utf-8")
