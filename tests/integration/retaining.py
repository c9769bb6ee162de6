"""Nodes whose clock is far ahead, and their retention: what its tests have in common."""

import asyncio
from pathlib import Path
from typing import Any

from knhk.bootstrap import Node
from knhk.bootstrap.protection import ArchivePlace
from knhk.config import Config
from knhk.domain.units import DAY
from knhk.engine.control import Filter, Submission
from knhk.persistence.journal_check import verify_all
from knhk.persistence.verification import Report, Trust
from knhk.protection.blob_archive import BlobArchive
from knhk.protection.retention import Retention, RetentionSettings
from knhk.security.signing import verify

DESCRIPTOR_TEXT = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: {name}}}
spec:
  inputs: {{text: {{type: string, default: ""}}}}
  steps:
    - {{name: a, action: process, params: {{output: "${{{{ inputs.text }}}}"}}}}
"""
WAITING = b"""
apiVersion: knhk/v1
kind: Workflow
metadata: {name: waits}
spec: {timeout: 1000d, steps: [{name: nap, action: wait, params: {duration: 900d}}]}
"""
BIG = "x" * 3000


class Later:
    """The node's clock, `ahead_ns` later: for what would otherwise take months."""

    def __init__(self, clock: Any, ahead_ns: int = 100 * DAY) -> None:
        self._clock, self.ahead_ns = clock, ahead_ns

    def now_ns(self) -> int:
        return int(self._clock.now_ns()) + self.ahead_ns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)


class House:
    """Nodes one after the other on one data directory, and their retention."""

    def __init__(self, path: Path, url: str = "") -> None:
        self.path, self.url = path, url
        self.node: Any = None

    async def open(self, **persistence: Any) -> Any:
        settings = {"path": self.path / "data", "url": self.url, **persistence}
        self.node = Node(Config.model_validate({"persistence": settings}))
        await self.node.start()
        return self.node

    async def close(self) -> None:
        if self.node is not None:
            await self.node.stop()
        self.node = None

    def retention(self, archive: bool = False, days: int = 90, ahead_ns: int = 100 * DAY) -> Retention:
        node, where = self.node, self.path / "archive"
        return Retention(
            RetentionSettings(days, 1 << 40, "node", 0, str(where) if archive else ""),
            node.store,
            node.signer,
            Later(node.clock, ahead_ns),
            is_at_rest=node.engine.is_at_rest,
            bar=node.engine.arrivals.bar,
            last_used=lambda: node.last_used_ns or node.clock.now_ns(),
            place=(lambda: ArchivePlace(str(where))) if archive else None,
            blobs=None if node.area is None else BlobArchive(node.area, lambda: ArchivePlace(str(where))),
        )

    async def run(self, count: int = 1, name: str = "w", **named: Any) -> list[int]:
        text = DESCRIPTOR_TEXT.format(name=name).encode()
        control = self.node.engine.control
        inputs = {"text": BIG}
        return [(await control.submit(Submission(text, inputs, **named), wait_s=30)).workflow_id for _ in range(count)]

    async def settled(self) -> None:
        """The lists show all that is committed."""
        engine = self.node.engine
        async with asyncio.timeout(30):
            while engine.projector.written < engine.committer.height:
                await asyncio.sleep(0.01)

    async def report(self) -> Report:
        store = self.node.store
        return await verify_all(store, store.scanner(), Trust.of(await store.keys(), verify), lambda *_: None)

    async def listed(self) -> list[str]:
        await self.settled()
        rows, _ = await self.node.engine.control.listing(Filter(), before=None, limit=1000)
        return [row["workflow_id"] for row in rows]
