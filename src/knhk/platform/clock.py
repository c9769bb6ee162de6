"""The clock of a running process: wall time that never runs backwards.

Unix time is read once, at start, and carried on by the monotonic clock. Somebody who sets the machine's clock, or NTP
that steps it, therefore neither fires timers early nor makes receipts go back in time; `drift_s` tells how far the
machine's clock has moved away since. The next start takes the machine's clock again, but never goes behind the journal.
"""

import asyncio
import time
from collections.abc import Callable
from time import monotonic_ns


class SystemClock:
    """Implements ports.environment.Clock on the event loop of the caller."""

    def __init__(self) -> None:
        self._start = time.time_ns() - time.monotonic_ns()
        self.corrected_ns = 0
        """How far this clock was set by `correct`."""

    def not_before(self, at_ns: int) -> None:
        """Never tell a time before this one: that of the journal's newest block."""
        behind = at_ns - self.now_ns()
        if behind > 0:
            self._start += behind

    def correct(self, by_ns: int) -> None:
        """Go by another clock than the machine's, which is ahead of it by so much. While nothing goes on."""
        self._start += by_ns
        self.corrected_ns += by_ns

    def now_ns(self) -> int:
        return self._start + monotonic_ns()

    @property
    def drift_s(self) -> float:
        """Seconds by which the machine's clock is ahead of this one (negative: behind), corrections aside."""
        return (time.time_ns() + self.corrected_ns - self.now_ns()) / 1e9

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, callback)
