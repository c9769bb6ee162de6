"""Steps that need not run, because one like them gave not long ago what they would give.

It is looked for in the rows of the projection, up to the newest commit: whatever was acknowledged is found. Two that
look at the same time find nothing and both run. What is found must still be there: what was erased or pruned is not.
"""

import asyncio
from collections.abc import Callable

import msgspec

from knhk.actions.registry import Failed
from knhk.domain import payload
from knhk.domain.cache import cache_key
from knhk.domain.errors import InvalidInput, KnhkError
from knhk.engine import cache_rows
from knhk.engine.cache_rows import Cached
from knhk.engine.committer import OUTPUT, Committer
from knhk.engine.executor import Attempt
from knhk.engine.projector import FOLD, Projector
from knhk.ports.environment import Clock
from knhk.ports.journal import Journal
from knhk.ports.storage import Projections


class Hit(msgspec.Struct, frozen=True):
    """What another step gave, and the receipt that says so."""

    cached: Cached
    raw: bytes


class Caching:
    """Looks for what may be used again. `found` is told what there is for an attempt, None if there is nothing."""

    def __init__(
        self,
        *,
        committer: Committer,
        journal: Journal,
        projections: Projections,
        projector: Projector,
        clock: Clock,
        found: Callable[[Attempt, Hit | None], None],
    ) -> None:
        self._committer, self._journal, self._projections = committer, journal, projections
        self._projector, self._clock, self._found = projector, clock, found
        self._tasks: set[asyncio.Task[None]] = set()

    def look_up(self, attempt: Attempt) -> bool | Failed:
        """See whether what an attempt would give is there already: `found` will be told, if this is true.

        Nobody looks for what an operator wants done again, but others may use that. Fails if there is no such key.
        """
        run, cache = attempt.live.run, attempt.step.cache
        assert cache is not None
        try:
            scope = attempt.live.scope_at(attempt.frame, attempt.index)
            attempt.cache_key = cache_key(cache, run.plan.department, scope)
        except InvalidInput as error:
            return Failed("KNHK-STEP-EXPRESSION", f"cache.key: {error.message}")
        if attempt.number > 1 or (run.submitted is not None and run.submitted.fork_of.workflow_id):
            return False
        task = asyncio.create_task(self._look_up(attempt), name="cache")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def stop(self) -> None:
        """Look for nothing any more; the attempts are taken up again after the next start."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look_up(self, attempt: Attempt) -> None:
        try:
            if (batch := attempt.live.batch) is not None:
                await batch.committed()  # What this very run has just completed is to be found too.
            hit = await self._find(attempt.cache_key)
        except KnhkError:
            hit = None  # It cannot be read, or is damaged: the step does it itself.
        self._found(attempt, hit)

    async def _find(self, key: bytes) -> Hit | None:
        await self._projector.reached(self._committer.durable_height)
        cached = await cache_rows.find(self._projections, FOLD, key)
        if cached is None or cached.until_ns <= self._clock.now_ns():
            return None
        raw = await self._journal.payload(cached.workflow_id, cached.seq, OUTPUT)
        if raw is None or payload.digest(raw) != cached.output_digest:
            return None
        return Hit(cached, raw)
