"""An invocation as the engine makes it, with what a test cares about put in its place."""

from collections.abc import Callable
from typing import Any

import pytest

from knhk.actions.registry import Invocation
from knhk.domain.expressions import Scope

Invoke = Callable[..., Invocation]


@pytest.fixture
def invoke() -> Invoke:
    def make(params: Any = None, **changes: Any) -> Invocation:
        outputs = changes.pop("dependencies", {})
        given: dict[str, Any] = {
            "workflow_id": "wf-1",
            "workflow_name": "orders",
            "step": "charge",
            "attempt": 1,
            "idempotency_key": "wf-1/charge",
            "params": params,
            "dependencies": outputs,
            "scope": Scope({"limit": 10}, outputs, {"id": "wf-1", "name": "orders"}),
            "now_ns": 1_700_000_000_000_000_000,
        }
        return Invocation(**{**given, **changes})

    return make
