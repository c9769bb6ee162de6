"""Runs that only wait: they are on disk, and here is nothing of them but the wake times of the next moments.

The store's timers are read window by window. A run that is due is loaded like any other; while all slots are taken the
ids of those that are due queue up, and no further window is read, so that memory stays bounded however many wait.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from knhk.domain.errors import KnhkError
from knhk.engine.deadlines import WAKE, Deadlines
from knhk.ports.environment import Clock
from knhk.ports.journal import Journal

_PAGE: Final = 2_000
_RETRY_NS: Final = 1_000_000_000
_WINDOW_KEY: Final = (0, WAKE)


class Sleepers:
    """Wakes parked runs of one partition.

    A window is `window_ns` long. `wake(id)` loads one and lets it go on if it is due; `has_room` says whether there is
    a slot for it. `trouble` is why the timers cannot be read just now.
    """

    def __init__(
        self,
        partition: int,
        journal: Journal,
        clock: Clock,
        deadlines: Deadlines,
        window_ns: int,
        *,
        wake: Callable[[int], Awaitable[None]],
        has_room: Callable[[], bool],
    ) -> None:
        self._partition, self._journal, self._clock, self._deadlines = partition, journal, clock, deadlines
        self._window_ns, self._wake, self._has_room = window_ns, wake, has_room
        self.trouble: KnhkError | None = None
        self._window_end_ns = 0
        self._due: deque[int] = deque()
        self._planned: dict[int, int] = {}
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to wake runs."""
        self._task = asyncio.create_task(self._work(), name="sleepers")
        self._news.set()

    async def stop(self) -> None:
        """Wake nobody any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def due(self) -> int:
        """How many runs are due and wait for a slot."""
        return len(self._due)

    def parked(self, workflow_id: int, wake_ns: int) -> None:
        """A run has left memory, and its slot is free; 0 means that no time wakes it."""
        self.room()
        if wake_ns and wake_ns <= self._window_end_ns:
            self._plan(workflow_id, wake_ns)

    def woken(self, workflow_id: int) -> None:
        """The time of a run, or of the next window (id 0), has come."""
        if self._planned.pop(workflow_id, 0):
            self._due.append(workflow_id)
        self._news.set()

    def room(self) -> None:
        """A slot may have become free."""
        if self._due:
            self._news.set()

    def _plan(self, workflow_id: int, wake_ns: int) -> None:
        self._planned[workflow_id] = wake_ns
        self._deadlines.set((workflow_id, WAKE), wake_ns)

    async def _work(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._due and self._has_room():
                await self._wake(self._due.popleft())
            if not self._due and self._clock.now_ns() >= self._window_end_ns:
                await self._read_window()

    async def _read_window(self) -> None:
        # The window is open before it is read: a run that parks meanwhile is not in what is read, and plans itself.
        self._window_end_ns = end = self._clock.now_ns() + self._window_ns
        try:
            rows = await self._journal.timers(self._partition, end, _PAGE)
        except KnhkError as error:
            self.trouble, self._window_end_ns = error, 0
            self._deadlines.set(_WINDOW_KEY, self._clock.now_ns() + _RETRY_NS)
            return
        self.trouble = None
        if len(rows) == _PAGE:
            end = rows[-1][0]
        self._window_end_ns = end
        for wake_ns, workflow_id in rows:
            if workflow_id not in self._planned:
                self._plan(workflow_id, wake_ns)
        self._deadlines.set(_WINDOW_KEY, max(end, self._clock.now_ns() + 1_000_000))
