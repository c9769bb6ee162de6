"""Deadlines of everything in memory, in one heap with one timer of the event loop.

A key (a run, or an attempt) has at most one deadline. Clearing is O(1): what is left behind in the heap is passed over
and swept out when it outweighs what is alive, so a finished run leaves nothing behind for long.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from knhk.ports.environment import Cancellable, Clock

Key = tuple[int, int]
RUN: Final = -1
WAKE: Final = -2
_SLACK: Final = 1024


class Deadlines:
    """Calls `due(key)` once the time of a key has come. Keys are (workflow id, step position, or RUN, or WAKE)."""

    def __init__(self, clock: Clock, due: Callable[[Key], None]) -> None:
        self._clock, self._due = clock, due
        self._at: dict[Key, int] = {}
        self._heap: list[tuple[int, Key]] = []
        self._handle: Cancellable | None = None
        self._handle_at = 0

    def __len__(self) -> int:
        return len(self._at)

    def set(self, key: Key, at_ns: int) -> None:
        """Give a key a deadline (Unix time in ns) in place of the one it had."""
        if self._at.get(key) == at_ns:
            return
        self._at[key] = at_ns
        heappush(self._heap, (at_ns, key))
        if len(self._heap) > 2 * len(self._at) + _SLACK:
            self._heap = [(at, one) for one, at in self._at.items()]
            heapify(self._heap)
        if self._handle is None or at_ns < self._handle_at:
            self._arm(at_ns)

    def clear(self, key: Key) -> None:
        """Take a key's deadline away, if it has one."""
        self._at.pop(key, None)

    def close(self) -> None:
        """Call nobody any more."""
        if self._handle is not None:
            self._handle.cancel()
        self._at.clear()
        self._heap.clear()

    def _arm(self, at_ns: int) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle_at = at_ns
        self._handle = self._clock.call_later(max(0.0, (at_ns - self._clock.now_ns()) / 1e9), self._fire)

    def _fire(self) -> None:
        self._handle = None
        now = self._clock.now_ns()
        due: list[Key] = []
        while self._heap and self._heap[0][0] <= now:
            at_ns, key = heappop(self._heap)
            if self._at.get(key) == at_ns:
                del self._at[key]
                due.append(key)
        for key in due:  # Only now: whoever is called may set a deadline that is due at once.
            self._due(key)
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        if self._heap:
            self._arm(self._heap[0][0])
