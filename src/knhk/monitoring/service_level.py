"""What is known of the service level, and what it means: how runs ended, and how long no process was alive."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

from prometheus_client.core import GaugeMetricFamily, Metric

from knhk.domain.histogram import quantile
from knhk.monitoring import objectives as slo
from knhk.monitoring.history import BOUNDS_S, Bucket
from knhk.monitoring.objectives import Measured, Objective
from knhk.monitoring.tally import Tally
from knhk.ports.environment import Clock

FOLD: Final = "service_level"
MOST_MADE_UP: Final = 100_000
"""So many blocks are read again at most; a longer gap is left as it is."""
_PAGE: Final = 64
_PERCENT: Final = 100.0
_SECOND_NS: Final = 1_000_000_000
_HOLDS_NS: Final = 5_000_000_000


class Targets(NamedTuple):
    """What is promised. `availability` and `success` are shares (0 to 1); so is `latency` of runs within `latency_s`.

    `least_failures` runs must have failed, `least_down_s` seconds been missed, before anybody is told.
    """

    availability: float
    success: float
    latency: float
    latency_s: float
    least_failures: int
    least_down_s: float


class Alive(Protocol):
    """How much of a window (in nanoseconds) a process was alive."""

    def percentage(self, window_ns: int) -> float: ...

    def down_seconds(self, window_ns: int) -> float: ...


class ServiceLevel(Tally):
    """A `ports.fold.Fold`, and what can be asked about it."""

    def __init__(self, clock: Clock, targets: Targets, uptime: Alive) -> None:
        super().__init__(clock, targets.latency_s)
        self.targets, self._uptime = targets, uptime
        self._summed: dict[int, Bucket] = {}
        self._downs: dict[int, Measured] = {}
        self._measured_at_ns = 0
        self.objectives = tuple(self._objectives())

    # -- what it means

    def _objectives(self) -> Iterator[Objective]:
        targets = self.targets
        yield Objective("availability", "The server was down", targets.availability, targets.least_down_s, self._down)
        yield Objective("success", "Workflows fail", targets.success, targets.least_failures, self._failed)
        if targets.latency_s > 0:
            title = f"Workflows take longer than {targets.latency_s:g} s"
            yield Objective("latency", title, targets.latency, targets.least_failures, self._slow)

    def _down(self, window_s: int) -> Measured:
        self._freshen()
        found = self._downs.get(window_s)
        if found is None:
            # Of the whole window, however young the node is: a restart in its first minutes uses no more of the month.
            found = Measured(self._uptime.down_seconds(window_s * _SECOND_NS), window_s)
            self._downs[window_s] = found
        return found

    def _window(self, seconds: int) -> Bucket:
        self._freshen()
        found = self._summed.get(seconds)
        if found is None:
            found = self._summed[seconds] = self.history.window(self._clock.now_ns(), seconds)
        return found

    def _freshen(self) -> None:
        """Forget what was measured a while ago. Until then it is as it was: many ask for the same at once."""
        now_ns = self._clock.now_ns()
        if now_ns - self._measured_at_ns > _HOLDS_NS:
            self._summed.clear()
            self._downs.clear()
            self._measured_at_ns = now_ns

    def _failed(self, window_s: int) -> Measured:
        found = self._window(window_s)
        return Measured(found.failed, found.total)

    def _slow(self, window_s: int) -> Measured:
        found = self._window(window_s)
        return Measured(found.slow, found.total)

    def report(self) -> dict[str, Any]:
        """Everything, for people and machines: percentages, seconds, and burn rates by window."""
        windows = {}
        for name, seconds in slo.WINDOWS.items():
            found = self._window(seconds)
            windows[name] = {
                "uptime_percent": self._uptime.percentage(seconds * _SECOND_NS),
                "workflows": found.total,
                "failed": found.failed,
                "error_percent": _PERCENT * found.failed / found.total if found.total else 0.0,
                "p50_s": quantile(0.5, BOUNDS_S, found.durations),
                "p99_s": quantile(0.99, BOUNDS_S, found.durations),
            }
        return {"windows": windows, "objectives": [self._shown(one) for one in self.objectives]}

    def _shown(self, objective: Objective) -> dict[str, Any]:
        return {
            "name": objective.name,
            "target_percent": round(objective.target * _PERCENT, 6),
            "met": objective.measure(slo.PERIOD_S).ratio <= objective.budget,
            "budget_left_percent": round(slo.budget_left(objective) * _PERCENT, 3),
            "burn_rates": {window: round(slo.burn_rate(objective, window), 3) for window in slo.WINDOWS},
        }

    def families(self) -> Iterator[Metric]:
        """The same for the metrics."""
        target = GaugeMetricFamily("knhk_slo_target_ratio", "The share that is to be good.", labels=("slo",))
        left = GaugeMetricFamily(
            "knhk_slo_error_budget_remaining_ratio", "Share of the 30 days' error budget that is left.", labels=("slo",)
        )
        burn = GaugeMetricFamily(
            "knhk_slo_burn_rate", "How many times too fast the error budget is used.", labels=("slo", "window")
        )
        for objective in self.objectives:
            target.add_metric((objective.name,), objective.target)
            left.add_metric((objective.name,), slo.budget_left(objective))
            for window in slo.WINDOWS:
                burn.add_metric((objective.name, window), slo.burn_rate(objective, window))
        yield from (target, left, burn, self._latencies())

    def _latencies(self) -> Metric:
        family = GaugeMetricFamily(
            "knhk_slo_latency_seconds", "Time from submission to end over a window.", labels=("quantile", "window")
        )
        for window in ("5m", "1h", "30d"):
            found = self._window(slo.WINDOWS[window])
            for share in (0.5, 0.99):
                seconds = quantile(share, BOUNDS_S, found.durations)
                if seconds is not None:
                    family.add_metric((f"{share:g}", window), seconds)
        return family
