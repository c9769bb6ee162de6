"""Notices that the event loop is blocked, and says by whom, while it is blocked.

The loop gives a sign every tenth of a second; a thread looks whether it came, and if not, at the loop's stack. That
thread needs Python's lock. Should native code hold even that, an alarm signal interrupts the loop's thread, and
`faulthandler` writes its stack to `stuck.txt` in the diagnostics directory, which `knhk support bundle` reads.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from knhk.diagnostics.stacks import Culprit, culprit_of, from_fault_handler, to_blame
from knhk.observability.logs import get
from knhk.observability.readings import OK

STUCK_FILE: Final = "stuck.txt"
DUMP_SIGNAL: Final = signal.SIGUSR2
_BEAT_S: Final = 0.1
_LOOK_S: Final = 0.2
_ARM_S: Final = 1.0
_LOCKED_S: Final = 3
"""After so long without Python's lock the fault handler writes its dump."""
_HEADING: Final = "Stack (most recent call first):\n"
_ALARM: Final = signal.SIGALRM
"""Not `dump_traceback_later`: its thread walks stacks that move. It killed processes that had been stopped for a while
(SIGSTOP, a machine that was moved) and woke together with it. A thread that is interrupted looks at itself only."""
_OTHER_THREAD: Final = "_bootstrap"
"""Where stacks begin, except the main one. When a process was stopped, the alarm comes to whichever thread wakes."""
_MOST_STUCK_BYTES: Final = 4 << 20
_WINDOW_S: Final = 15.0
_KEPT: Final = 20
_FIRST_REPEAT_S: Final = 10.0


class Stall(msgspec.Struct):
    """A time in which the loop did not turn. `began_s` is on the monotonic clock; `over` once it turned again."""

    began_s: float
    seconds: float
    culprit: Culprit | None
    over: bool = False
    locked: bool = False
    """Whether not even other threads could run: native code held Python's lock, or the machine stopped the process."""

    def __str__(self) -> str:
        verb = "was" if self.over else "has been"
        cause = "an unknown cause" if self.culprit is None else str(self.culprit)
        locked = ", which let no other thread run either" if self.locked else ""
        return f"the event loop {verb} blocked for {self.seconds:.1f} s by {cause}{locked}"


class Watchdog:
    """Watches the loop that it is started on. A `ports.duty.Duty`."""

    room: Final = "persistence"
    """While the loop is blocked nothing can be recorded."""

    def __init__(self, directory: Path, stall_after_s: float) -> None:
        self._directory, self._stall_after_s = directory, stall_after_s
        self._beaten_s = time.monotonic()
        self._looked_s = self._beaten_s
        self._worst = [0.0, 0.0]
        self._window_s = self._beaten_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop_thread = 0
        self._stuck: IO[str] | None = None
        self._read_to = 0
        self._next_report_s = 0.0
        self._log = get("knhk.watchdog")
        self.stall: Stall | None = None
        self.stalls: deque[Stall] = deque(maxlen=_KEPT)
        self.count, self.stalled_s = 0, 0.0

    async def start(self) -> None:
        """Begin to watch the running loop."""
        self._loop_thread = threading.get_ident()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._stuck = (self._directory / STUCK_FILE).open("a+", encoding="utf-8")
            self._stuck.truncate(0)
            faulthandler.register(DUMP_SIGNAL, file=self._stuck, all_threads=True)
            faulthandler.register(_ALARM, file=self._stuck, all_threads=False)
        except OSError as error:
            self._log.warning("the diagnostics directory cannot be written", reason=str(error))
        self._beaten_s = time.monotonic()
        self._beat()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 2.0)
        if self._stuck is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.unregister(_ALARM)
            faulthandler.unregister(DUMP_SIGNAL)
            self._stuck.close()

    def health(self) -> str:
        """The stall that goes on just now, or `ok`."""
        stall = self.stall
        return OK if stall is None else str(stall)

    def families(self) -> Iterator[Metric]:
        """How often and how long the loop was blocked, for the metrics."""
        stall = self.stall
        yield GaugeMetricFamily(
            "knhk_event_loop_blocked_seconds",
            "How long the event loop has been blocked by now; 0 while it turns.",
            0.0 if stall is None else stall.seconds,
        )
        yield CounterMetricFamily("knhk_event_loop_stalls", "Times that the event loop was blocked.", self.count)
        yield CounterMetricFamily(
            "knhk_event_loop_stalled_seconds", "Time that the event loop was blocked in all.", self.stalled_s
        )

    def lag_s(self) -> float:
        """The longest time, in about the last 15 to 30 s, by which the loop was late."""
        return max(*self._worst, self._late(time.monotonic()))

    def _late(self, now_s: float) -> float:
        return max(0.0, now_s - self._beaten_s - _BEAT_S)

    def _beat(self) -> None:
        now_s = time.monotonic()
        self._note_lag(now_s)
        self._beaten_s = now_s
        self._timer = asyncio.get_running_loop().call_later(_BEAT_S, self._beat)

    def _note_lag(self, now_s: float) -> None:
        if now_s - self._window_s > _WINDOW_S:
            self._worst = [0.0, self._worst[0]]
            self._window_s = now_s
        self._worst[0] = max(self._worst[0], self._late(now_s))

    def _watch(self) -> None:
        armed_s = self._arm()
        while not self._stop.wait(_LOOK_S):
            now_s = time.monotonic()
            if now_s - armed_s > _ARM_S:
                armed_s = self._arm()
            try:
                self._look(now_s)
            except Exception:
                self._log.exception("the watchdog stumbled")
            self._looked_s = now_s

    def _arm(self) -> float:
        """Have the loop's stack written unless we come back in time; the time now."""
        if self._stuck is not None:
            signal.setitimer(signal.ITIMER_REAL, _LOCKED_S)
        return time.monotonic()

    def _look(self, now_s: float) -> None:
        overslept_s = now_s - self._looked_s - _LOOK_S
        if overslept_s > self._stall_after_s:
            self._end(now_s)
            self._begin(Stall(self._beaten_s, overslept_s, self._locked_by(), locked=True))
            return
        late_s = self._late(now_s)
        if late_s > self._stall_after_s:
            self._goes_on(late_s, now_s)
        else:
            self._end(now_s)

    def _goes_on(self, late_s: float, now_s: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        culprit = culprit_of(frame) if frame is not None else None
        if self.stall is None or self.stall.began_s != self._beaten_s:
            self._end(now_s)
            self._begin(Stall(self._beaten_s, late_s, culprit))
            return
        self.stall.seconds = late_s
        if now_s >= self._next_report_s:
            self._report(self.stall)

    def _begin(self, stall: Stall) -> None:
        self.stall = stall
        self.stalls.append(stall)
        self.count += 1
        self._report(stall)

    def _end(self, now_s: float) -> None:
        stall = self.stall
        if stall is None:
            return
        if not stall.locked:
            stall.seconds = max(stall.seconds, self._beaten_s - stall.began_s - _BEAT_S)
        stall.over, self.stall = True, None
        self.stalled_s += stall.seconds
        self._log.info("the event loop turns again", blocked_s=round(stall.seconds, 1))

    def _report(self, stall: Stall) -> None:
        self._next_report_s = time.monotonic() + max(_FIRST_REPEAT_S, stall.seconds)
        by = stall.culprit
        fields: dict[str, object] = {} if by is None else msgspec.structs.asdict(by) | {"place": str(by.place)}
        fields["inside"] = "" if by is None else str(by.inside)
        self._log.error("the event loop is blocked", blocked_s=round(stall.seconds, 1), locked=stall.locked, **fields)

    def _locked_by(self) -> Culprit | None:
        """Who held Python's lock, from what the fault handler wrote; None if it was the machine that paused us."""
        if self._stuck is None:
            return None
        if self._stuck.seek(0, os.SEEK_END) > _MOST_STUCK_BYTES:
            self._stuck.truncate(0)
            self._read_to = 0
        self._stuck.seek(self._read_to)
        # What stands before and after was asked for by the other signal.
        _, heading, dump = self._stuck.read().rpartition(_HEADING)
        stack = from_fault_handler(dump) if heading else []
        self._read_to = self._stuck.tell()
        if not stack or stack[-1].function == _OTHER_THREAD:
            return None
        return Culprit(to_blame(stack), stack[0])
