"""Errors of the Serverless Workflow DSL: RFC 9457 objects with the standard's types, and whether a filter fits one.

The standard has changed the prefix of its error types from version to version; two types that name the same standard
error are the same error, whichever prefix they have.
"""

from collections.abc import Mapping
from typing import Any, Final

PREFIX: Final = "https://serverlessworkflow.io/spec/1.0.0/errors/"
_HOST: Final = "https://serverlessworkflow.io/"
_STANDARD: Final = {
    "configuration": (400, "Configuration Error"),
    "validation": (400, "Validation Error"),
    "expression": (400, "Expression Error"),
    "authentication": (401, "Authentication Error"),
    "authorization": (403, "Authorization Error"),
    "timeout": (408, "Timeout Error"),
    "communication": (500, "Communication Error"),
    "runtime": (500, "Runtime Error"),
}


def standard_error(kind: str, detail: str, *, instance: str = "", status: int | None = None) -> dict[str, Any]:
    """An error of a standard kind, such as `communication`, with the status of its cause if there is one."""
    usual, title = _STANDARD[kind]
    shown = {"type": PREFIX + kind, "status": usual if status is None else status, "title": title, "detail": detail}
    return {**shown, "instance": instance} if instance else shown


def fits(error: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether an error has every attribute that a filter names."""
    for name, value in wanted.items():
        if name == "type":
            if _named(str(error.get("type", ""))) != _named(str(value)):
                return False
        elif error.get(name) != value:
            return False
    return True


def _named(kind: str) -> str:
    """A type without the prefix of a version, if it is one of the standard's."""
    last = kind.rstrip("/").rpartition("/")[2]
    return last if kind.startswith(_HOST) and last in _STANDARD else kind
