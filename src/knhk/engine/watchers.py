"""Those who follow single runs: told after each commit that touches theirs. Costs nothing while nobody follows."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from knhk.engine.committer import Batch


class Watchers:
    """Events by workflow id; `idle_s` is how long they wait for news at most."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._watched: dict[int, set[asyncio.Event]] = {}
        self.closed = False
        """Whether nothing is told any more, because the engine is about to stop."""

    @contextmanager
    def watch(self, workflow_id: int) -> Iterator[asyncio.Event]:
        """An event that is set whenever receipts of the run have been committed."""
        changed = asyncio.Event()
        self._watched.setdefault(workflow_id, set()).add(changed)
        try:
            yield changed
        finally:
            others = self._watched[workflow_id]
            others.discard(changed)
            if not others:
                del self._watched[workflow_id]

    def close(self) -> None:
        """Wake all; there will be no news."""
        self.closed = True
        for events in self._watched.values():
            for changed in events:
                changed.set()

    async def wait(self, changed: asyncio.Event) -> bool:
        """Wait for news; False if there were none for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._idle_s):
                await changed.wait()
                return True
        return False

    def notify(self, batch: Batch) -> None:
        """A batch is durable."""
        if self._watched:
            for piece in batch.pieces:
                for changed in self._watched.get(piece.live.run.workflow_id, ()):
                    changed.set()
