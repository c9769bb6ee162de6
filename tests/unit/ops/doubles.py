"""A node for the operations server to look at, whose state a test sets."""

import asyncio
from collections.abc import Mapping
from typing import Any

from knhk.domain.errors import KnhkError
from knhk.observability.metrics import Metrics


class Node:
    """Implements ops.operations.Operations."""

    version = "5.0.0"

    def __init__(self) -> None:
        self.uptime_s = 864000.9
        self.halted: str | None = None
        self.checks: dict[str, str] = {"persistence": "ok", "observability": "ok", "recovery": "ok"}
        self.closed = ""
        self.failure: Exception | None = None
        self.counts = Metrics()
        self.shutdowns = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.writing = asyncio.Event()

    async def health(self) -> Mapping[str, str]:
        if self.failure is not None and not isinstance(self.failure, KnhkError):
            raise self.failure
        return self.checks

    async def ready(self) -> tuple[bool, str]:
        return not self.closed, self.closed

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        return self.counts.exposition(accept)

    async def checkpoint(self) -> Mapping[str, Any]:
        self.writing.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return {"path": "/var/lib/knhk/checkpoints/1", "height": 41}

    async def drill(self) -> Mapping[str, Any]:
        return {"ok": True}

    async def shutdown(self) -> None:
        self.shutdowns += 1
