"""When an open loop sends: at a fixed rate, whether or not the server keeps up."""

import ctypes
import os
import time

import msgspec

NS_PER_SECOND = 1_000_000_000
_SHORTEST_TICK_NS = 200_000
_TFD_TIMER_ABSTIME = 1


class ArrivalSchedule(msgspec.Struct, frozen=True):
    """`total` arrivals, evenly spaced, the first one at `start_ns` of the monotonic clock."""

    start_ns: int
    rate: int
    total: int

    def intended_ns(self, index: int) -> int:
        """When arrival `index` (from 0) is meant to be sent; computed, not summed up, so that no error adds up."""
        return self.start_ns + index * NS_PER_SECOND // self.rate

    def due(self, now_ns: int) -> int:
        """How many arrivals should have been sent by `now_ns`, that moment included."""
        if now_ns < self.start_ns:
            return 0
        # floor(index * second / rate) <= elapsed  <=>  index <= ((elapsed + 1) * rate - 1) / second
        return min(self.total, ((now_ns - self.start_ns + 1) * self.rate - 1) // NS_PER_SECOND + 1)

    @property
    def tick_ns(self) -> int:
        """How often to look: at every arrival, but at high rates for several at once."""
        return max(NS_PER_SECOND // self.rate, _SHORTEST_TICK_NS)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("first", _TimeSpec))


class Ticker:
    """A kernel timer (timerfd_create(2)) that an event loop can wait for.

    Event loops round their own timers up to a millisecond, which would show as latency of the server.
    """

    def __init__(self, first_ns: int, interval_ns: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        spec = _TimerSpec(
            _TimeSpec(*divmod(interval_ns, NS_PER_SECOND)),
            _TimeSpec(*divmod(first_ns, NS_PER_SECOND)),
        )
        if libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None) != 0:
            error = ctypes.get_errno()
            self.close()
            raise OSError(error, "timerfd_settime failed")

    def fileno(self) -> int:
        """For `add_reader`."""
        return self._fd

    def acknowledge(self) -> None:
        """Make the timer unreadable until its next tick."""
        os.read(self._fd, 8)

    def close(self) -> None:
        """Stop the timer."""
        os.close(self._fd)
