"""Sends traces, metrics and logs to an OpenTelemetry collector, from a thread of its own.

Everything waits in bounded queues; what does not fit is dropped and counted. A collector that is slow, down or wrong
costs telemetry and nothing else: the event loop never waits for it, and a stop waits for it at most `_FAREWELL_S`.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from knhk.observability import otlp_logs, otlp_metrics
from knhk.observability.logs import get, keep, keep_no_more
from knhk.observability.otlp import SIGNALS, NotTaken, Rejected, Sender, Signal, TryAgain
from knhk.observability.otlp_logs import LogLines
from knhk.observability.readings import OK
from knhk.observability.spans import Spans
from knhk.ports.environment import Cancellable, Clock

BATCH: Final = 2_048
"""Records in one request: about 400 kB of spans, well below the 4 MiB that collectors take."""
_TIMEOUT_S: Final = 10.0
_FAREWELL_S: Final = 3.0
_SETTLE_S: Final = 0.1
"""What was committed at the end of a drain reaches the folds in less than this."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_ASK_AGAIN_S: Final = 600.0
"""A collector that takes no metrics, or no logs, is asked again after this long."""


class _Lane:
    """One signal on its way: the request that waits to be sent again, and what became of the others."""

    def __init__(self, signal: Signal) -> None:
        self.signal: Signal = signal
        self.request: bytes | None = None
        self.count = 0
        self.not_before = 0.0
        self.pause_s = _FIRST_PAUSE_S
        self.sent = self.dropped = self.failures = 0
        self.refused_until = 0.0
        self.trouble = ""

    def hold(self, request: bytes, count: int) -> None:
        self.request, self.count = request, count

    def done(self) -> None:
        self.request, self.count, self.pause_s, self.not_before, self.trouble = None, 0, _FIRST_PAUSE_S, 0.0, ""


class Exporter:
    """A duty of the room observability.

    `families` gives what a scrape would show; it is called on the event loop, once in each interval. `connect` makes
    the sender, in the exporter's thread.
    """

    room: Final = "observability"

    def __init__(
        self,
        clock: Clock,
        resource: Resource,
        connect: Callable[[], Sender],
        *,
        interval_s: float,
        sampling_rate: float,
        families: Callable[[], Iterable[Metric]],
        where: str,
    ) -> None:
        self._clock, self._resource, self._connect = clock, resource, connect
        self._encoded_resource = resource.SerializeToString()
        self._interval_s, self._families, self._where = interval_s, families, where
        self._wake = threading.Event()
        self.spans = Spans(sampling_rate, BATCH, self._wake.set)
        self.lines = LogLines(BATCH, self._wake.set)
        self._measured: tuple[list[Metric], int] | None = None
        self._began_ns = clock.now_ns()
        self._lanes = {signal: _Lane(signal) for signal in SIGNALS}
        self._planned: Cancellable | None = None
        self._stop_by = 0.0
        self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)
        self._log = get("knhk.telemetry")

    async def start(self) -> None:
        """Begin to send."""
        keep(self.lines.take)
        self._thread.start()
        self._plan()

    async def stop(self) -> None:
        """Send what is there, as far as that is quick, and end."""
        await self._clock.sleep(_SETTLE_S)
        keep_no_more(self.lines.take)
        if self._planned is not None:
            self._planned.cancel()
        if not self._thread.is_alive():
            return
        self._measure()
        self._stop_by = time.monotonic() + _FAREWELL_S
        self._wake.set()
        # A thread that hangs in a call is left to the end of the process: it is a daemon.
        await asyncio.to_thread(self._thread.join, _FAREWELL_S + 0.5)

    def health(self) -> str:
        """What is wrong with the collector, and what that has cost."""
        reasons: dict[str, list[str]] = {}
        for lane in self._lanes.values():
            if lane.trouble:
                reasons.setdefault(lane.trouble, []).append(lane.signal)
        if not reasons:
            return OK
        wrong = [f"{', '.join(signals)}: {reason}" for reason, signals in reasons.items()]
        lost = sum(self._dropped(lane) for lane in self._lanes.values())
        return f"the collector {self._where} does not take what is sent ({'; '.join(wrong)}); {lost} records are lost"

    def families(self) -> Iterator[Metric]:
        """What became of the telemetry, for the metrics."""
        sent = CounterMetricFamily("knhk_telemetry_sent", "Records that the collector took.", labels=("signal",))
        lost = CounterMetricFamily("knhk_telemetry_dropped", "Records that were given up.", labels=("signal",))
        failures = CounterMetricFamily("knhk_telemetry_failures", "Requests that failed.", labels=("signal",))
        for lane in self._lanes.values():
            sent.add_metric((lane.signal,), lane.sent)
            lost.add_metric((lane.signal,), self._dropped(lane))
            failures.add_metric((lane.signal,), lane.failures)
        queued = GaugeMetricFamily("knhk_telemetry_queued", "Records that wait to be sent.", labels=("signal",))
        queued.add_metric(("traces",), len(self.spans))
        queued.add_metric(("logs",), len(self.lines))
        yield from (sent, lost, failures, queued)

    def _dropped(self, lane: _Lane) -> int:
        queue = {"traces": self.spans.dropped, "logs": self.lines.dropped}
        return lane.dropped + queue.get(lane.signal, 0)

    def _plan(self) -> None:
        self._planned = self._clock.call_later(self._interval_s, self._interval_passed)

    def _interval_passed(self) -> None:
        self._measure()
        self._wake.set()
        self._plan()

    def _measure(self) -> None:
        self.spans.hand_over()
        if time.monotonic() >= self._lanes["metrics"].refused_until:
            self._measured = list(self._families()), self._clock.now_ns()

    # -- in the thread

    def _work(self) -> None:
        sender: Sender | None = None
        while True:
            next_try = self._next_try()
            self._wake.wait(None if next_try is None else max(0.0, next_try - time.monotonic()))
            self._wake.clear()
            try:
                sender = sender or self._connect()
                self._send_all(sender)
            except Exception as error:  # a fault of ours must not end the telemetry of the whole process
                self._log.error("telemetry failed", exc_info=error)
            if self._stop_by:
                break
        if sender is not None:
            sender.close()

    def _next_try(self) -> float | None:
        waiting = [lane.not_before for lane in self._lanes.values() if lane.request is not None]
        return min(waiting, default=None)

    def _send_all(self, sender: Sender) -> None:
        """Send all that is queued; a lane whose request failed waits, and its queue fills up meanwhile."""
        for lane in self._lanes.values():
            while self._fill(lane) and self._send(sender, lane):
                pass

    def _fill(self, lane: _Lane) -> bool:
        """Whether the lane has a request to send now."""
        now = time.monotonic()
        if lane.request is None:
            self._fetch(lane, refused=now < lane.refused_until)
        return lane.request is not None and (now >= lane.not_before or self._stop_by > 0)

    def _fetch(self, lane: _Lane, *, refused: bool) -> None:
        match lane.signal:
            case "traces":
                while lane.request is None and (made := self.spans.fetch(self._encoded_resource)) is not None:
                    if not refused:
                        lane.hold(*made)
            case "logs":
                while lane.request is None and (lines := self.lines.fetch()):
                    if not refused:
                        made_logs = otlp_logs.request(lines, self._resource, self._clock.now_ns())
                        lane.hold(made_logs.SerializeToString(), len(lines))
            case "metrics":
                measured, self._measured = self._measured, None
                if measured is not None and not refused:
                    points, count = otlp_metrics.request(measured[0], self._resource, self._began_ns, measured[1])
                    lane.hold(points.SerializeToString(), count)

    def _send(self, sender: Sender, lane: _Lane) -> bool:
        """Send the lane's request once; whether the lane can go on."""
        assert lane.request is not None
        left_s = self._stop_by - time.monotonic() if self._stop_by else _TIMEOUT_S
        if left_s <= 0:
            lane.dropped += lane.count
            lane.done()
            return False
        try:
            unwanted = sender.send(lane.signal, lane.request, min(left_s, _TIMEOUT_S))
        except NotTaken as error:
            self._not_taken(lane, str(error))
            return False
        except Rejected as error:
            self._failed(lane, str(error))
            lane.dropped += lane.count
            lane.request = None
            return not self._stop_by
        except TryAgain as error:
            self._failed(lane, str(error))
            lane.not_before = time.monotonic() + lane.pause_s
            lane.pause_s = min(_LONGEST_PAUSE_S, lane.pause_s * 2)
            if lane.signal == "metrics" or self._stop_by:  # newer figures come by themselves
                lane.dropped += lane.count
                lane.request = None
            return False
        lane.sent += lane.count - unwanted
        lane.dropped += unwanted
        if lane.trouble:
            self._log.info("the collector takes telemetry again", signal=lane.signal, collector=self._where)
        lane.done()
        return True

    def _failed(self, lane: _Lane, reason: str) -> None:
        lane.failures += 1
        if not lane.trouble:
            self._log.warning("telemetry cannot be sent", signal=lane.signal, collector=self._where, reason=reason)
        lane.trouble = reason

    def _not_taken(self, lane: _Lane, reason: str) -> None:
        lane.dropped += lane.count
        lane.done()
        if not lane.refused_until:
            text = "the collector takes no such signal; it is not sent"
            self._log.info(text, signal=lane.signal, collector=self._where, reason=reason)
        lane.refused_until = time.monotonic() + _ASK_AGAIN_S
