"""Descriptors in few words, for tests of the engine."""

from collections.abc import Sequence
from typing import Any

import msgspec


def step(name: str, action: str = "process", after: Sequence[str] = (), *, params: Any = None, **rest: Any) -> Any:
    """One step; `rest` are further keys of a step, such as timeout, retry and semantics."""
    written: dict[str, Any] = {"name": name, "action": action, **rest}
    if after:
        written["depends_on"] = list(after)
    if params is not None:
        written["params"] = params
    return written


def workflow(*steps: Any, name: str = "orders", department: str = "", **spec: Any) -> bytes:
    """The text of a descriptor; `spec` are further keys of the specification, such as covenant and timeout."""
    metadata = {"name": name, **({"department": department} if department else {})}
    return msgspec.json.encode(
        {"apiVersion": "knhk/v1", "kind": "Workflow", "metadata": metadata, "spec": {"steps": list(steps), **spec}}
    )
