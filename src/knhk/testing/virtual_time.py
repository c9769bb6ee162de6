"""Virtual time: an event loop whose clock jumps to the next timer, so that hours of a run take milliseconds.

Everything in the loop that waits for time (the engine through its Clock, a test through asyncio.sleep) sees the same
clock, and the order of what happens depends on nothing but the code: a failing test fails again in the same way.
"""

import asyncio
import selectors
from collections.abc import Callable
from math import ceil
from typing import Any

EPOCH_NS = 1_767_225_600_000_000_000
_THREADS_S = 5.0
_RESOLUTION_S = 2e-9
"""asyncio fires a timer up to a nanosecond early. Here that would stop the clock: who looks at it would wait again."""


class _Selector(selectors.DefaultSelector):
    """Never waits for time. Waits for real only if nothing but another thread can move the loop on."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped_ns = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            events = super().select(_THREADS_S)
            if not events:
                raise AssertionError("deadlock: no timer is set and nothing is ready")
            return events
        events = super().select(0)
        if not events and timeout > 0:
            self.skipped_ns += ceil(timeout * 1e9)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own, which begins at 0."""

    def __init__(self) -> None:
        self._jumping = _Selector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.skipped_ns / 1e9


class VirtualClock:
    """ports.environment.Clock on the running VirtualLoop; Unix time begins at EPOCH_NS."""

    def now_ns(self) -> int:
        return EPOCH_NS + round(asyncio.get_running_loop().time() * 1e9)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds + _RESOLUTION_S, callback)


def in_virtual_time(main: Callable[[], Any]) -> Any:
    """Run an async function to its end on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
