"""Which runs count for which limit: the holders of each concurrency key, and the recent starts under each rate key.

What is counted are runs, by id, never a number that goes up and down: a run holds its key from its start to its end,
both of them receipts, and holding or letting go twice changes nothing. After a restart the holders that are parked come
from the rows of the projection, once it has everything that is committed; until then no run with limits starts.
"""

from bisect import insort
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from knhk.engine.live import LiveRun

MOST_NAMED: Final = 5


class Obstacle(msgspec.Struct, frozen=True):
    """What keeps a run from starting, whatever slots there are. `until_ns` is when that is over, 0 if none knows."""

    kind: Literal["concurrency", "rate_limit", "loading"]
    key: str = ""
    until_ns: int = 0


class Holders:
    """The present holders and recent starts of one partition."""

    def __init__(self) -> None:
        self.loaded = False
        self._by_key: dict[str, set[int]] = {}
        self._starts: dict[str, list[int]] = {}
        self._let_go: set[int] = set()

    def load(self, holders: Iterable[tuple[int, str]], starts: Iterable[tuple[int, str]]) -> None:
        """Take in (run, key) and (until when a start counts, key) as the rows have them. Limited runs may now start."""
        for workflow_id, key in holders:
            if workflow_id not in self._let_go:  # it ended in this process, and its row is older than that
                self._by_key.setdefault(key, set()).add(workflow_id)
        known = {key: set(untils) for key, untils in self._starts.items()}
        for until_ns, key in starts:
            if until_ns not in known.get(key, ()):
                insort(self._starts.setdefault(key, []), until_ns)
        self.loaded = True
        self._let_go.clear()

    def obstacle(self, live: LiveRun, now_ns: int) -> Obstacle | None:
        """What keeps a run from starting now, None if nothing does."""
        limits, submitted = live.run.plan.limits, live.run.submitted
        concurrency, rate = limits.concurrency, limits.rate_limit
        if (concurrency is None and rate is None) or submitted is None:
            return None
        if not self.loaded:
            return Obstacle("loading")
        if concurrency is not None and len(self.of(submitted.concurrency_key)) >= concurrency.limit:
            return Obstacle("concurrency", submitted.concurrency_key)
        if rate is not None:
            untils = self._starts.get(submitted.rate_key, [])
            while untils and untils[0] <= now_ns:
                del untils[0]
            if len(untils) >= rate.limit:
                return Obstacle("rate_limit", submitted.rate_key, untils[-rate.limit])
            if not untils:
                self._starts.pop(submitted.rate_key, None)
        return None

    def of(self, key: str) -> set[int]:
        """The runs that hold a concurrency key; not to be changed."""
        return self._by_key.get(key, set())

    def hold(self, live: LiveRun) -> None:
        """A run is under way: it holds its key, if it has one."""
        submitted = live.run.submitted
        if submitted is not None and submitted.concurrency_key:
            self._by_key.setdefault(submitted.concurrency_key, set()).add(live.run.workflow_id)
            self._let_go.discard(live.run.workflow_id)

    def count_start(self, live: LiveRun, until_ns: int) -> None:
        """A run has started, which counts for its rate limit until then."""
        if until_ns and live.run.submitted is not None:
            insort(self._starts.setdefault(live.run.submitted.rate_key, []), until_ns)

    def let_go(self, live: LiveRun) -> str:
        """A run has ended. Returns its key, if others may be waiting for it."""
        submitted, workflow_id = live.run.submitted, live.run.workflow_id
        if submitted is None or not submitted.concurrency_key:
            return ""
        if not self.loaded:
            self._let_go.add(workflow_id)
        key = submitted.concurrency_key
        holders = self._by_key.get(key)
        if holders is not None:
            holders.discard(workflow_id)
            if not holders:
                del self._by_key[key]
        return key
