"""KNHK: durable workflow orchestration.

This is the public surface for those who write actions, and for programs that use a server. Names are imported when they
are first used, so that `import knhk` costs next to nothing and the command line starts quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knhk.actions.blob_access import Blob
    from knhk.actions.decorator import ActionContext, ActionFailed, RetryAction, action
    from knhk.actions.registry import Cancelled, Failed, Outcome, RetryLater, Succeeded, WaitUntil
    from knhk.sdk.builder import Expression, Workflow, cel
    from knhk.sdk.client import AsyncClient, Client

    __version__: str

__all__ = [
    "ActionContext",
    "ActionFailed",
    "AsyncClient",
    "Blob",
    "Cancelled",
    "Client",
    "Expression",
    "Failed",
    "Outcome",
    "RetryAction",
    "RetryLater",
    "Succeeded",
    "WaitUntil",
    "Workflow",
    "__version__",
    "action",
    "cel",
]

_DECORATOR = "knhk.actions.decorator"
_REGISTRY = "knhk.actions.registry"
_BUILDER = "knhk.sdk.builder"
_CLIENT = "knhk.sdk.client"
_HOME = {
    "ActionContext": _DECORATOR,
    "ActionFailed": _DECORATOR,
    "AsyncClient": _CLIENT,
    "Blob": "knhk.actions.blob_access",
    "Cancelled": _REGISTRY,
    "Client": _CLIENT,
    "Expression": _BUILDER,
    "Failed": _REGISTRY,
    "Outcome": _REGISTRY,
    "RetryAction": _DECORATOR,
    "RetryLater": _REGISTRY,
    "Succeeded": _REGISTRY,
    "WaitUntil": _REGISTRY,
    "Workflow": _BUILDER,
    "cel": _BUILDER,
    "action": _DECORATOR,
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("knhk")
    except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
        return "0+unknown"
