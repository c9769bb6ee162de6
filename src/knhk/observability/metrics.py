"""What /metrics shows: a fold that counts every committed event, and the readings of the other parts.

The fold sees millions of events, so it only adds plain integers; Prometheus's types are made from them at a scrape.
Counters begin at 0 with the process, as Prometheus expects. docs/metrics.md lists every name.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.registry import Collector

from knhk.domain.event import (
    Cancelled,
    Completed,
    Detail,
    Event,
    Failed,
    StepCompleted,
    StepFailed,
    StepRetrying,
    Submitted,
    TimedOut,
)
from knhk.domain.summary import Summary
from knhk.observability.readings import Readings, ReadingsCollector

MOST_DEPARTMENTS: Final = 100
OTHER: Final = "other"
NONE: Final = "none"
_LONGEST_NAME: Final = 64
_ENDS: Final[dict[type[Detail], int]] = {Completed: 0, Failed: 1, TimedOut: 2, Cancelled: 3}
_END_NAMES: Final = ("completed", "failed", "timed_out", "cancelled")
_FAILED, _TIMED_OUT = 1, 2
_BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0),
)
_BUCKETS_NS: Final = tuple(round(bound * 1e9) for bound in _BUCKETS_S)


class Exposition(NamedTuple):
    """The text of a scrape and its content type."""

    body: bytes
    content_type: str


class Metrics(Collector):
    """The metrics of one process: a `ports.fold.Fold`, and what renders them.

    `connect` adds the readings once the other parts are built.
    """

    def __init__(self) -> None:
        self._submitted = self._steps_completed = self._steps_failed = self._steps_retrying = 0
        # The names that alert rules use are there from the first scrape on.
        self._departments: dict[str, list[int]] = {NONE: [0] * len(_END_NAMES)}
        self._buckets = [0] * (len(_BUCKETS_NS) + 1)
        self._duration_ns = 0
        self._handlers: dict[type[Detail], Callable[[Summary, Event], None]] = {
            Submitted: self._on_submitted,
            StepFailed: self._on_step_failed,
            StepRetrying: self._on_step_retrying,
            **dict.fromkeys(_ENDS, self._on_ended),
        }
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def connect(self, readings: Readings) -> None:
        """Show these readings too."""
        self._registry.register(ReadingsCollector(readings))

    def exposition(self, accept: str = "") -> Exposition:
        """Everything, in the format the `Accept` header asks for: OpenMetrics, or Prometheus's text format 0.0.4."""
        try:
            encode, content_type = choose_encoder(accept)
        except (ValueError, TypeError):  # what the library makes of a version that is none
            encode, content_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
        return Exposition(encode(self._registry), content_type)

    def take(self, summary: Summary, event: Event) -> None:
        """Count one committed event. Never raises, and takes less than a microsecond."""
        kind = type(event.detail)
        if kind is StepCompleted:
            self._steps_completed += 1
            return
        handler = self._handlers.get(kind)
        if handler is not None:
            handler(summary, event)

    def collect(self) -> Iterator[Metric]:
        """The counted events as metric families."""
        yield CounterMetricFamily("knhk_workflows_submitted", "Workflows that were accepted.", self._submitted)
        ended = CounterMetricFamily("knhk_workflows", "Workflows that came to an end.", labels=("status", "department"))
        errors = CounterMetricFamily(
            "knhk_workflow_errors", "Workflows that failed or timed out.", labels=("department",)
        )
        for department, counts in list(self._departments.items()):
            for status, count in zip(_END_NAMES, counts, strict=True):
                ended.add_metric((status, department), count)
            errors.add_metric((department,), counts[_FAILED] + counts[_TIMED_OUT])
        yield ended
        yield errors
        yield self._durations()
        steps = CounterMetricFamily("knhk_steps", "Attempts of steps, by their outcome.", labels=("status",))
        steps.add_metric(("completed",), self._steps_completed)
        steps.add_metric(("failed",), self._steps_failed)
        steps.add_metric(("retrying",), self._steps_retrying)
        yield steps

    def _durations(self) -> Metric:
        cumulated, buckets = 0, []
        for bound, count in zip((*_BUCKETS_S, float("inf")), self._buckets, strict=True):
            cumulated += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(cumulated)))
        return HistogramMetricFamily(
            "knhk_workflow_duration_seconds",
            "Time from the submission of a workflow to its end.",
            buckets=buckets,
            sum_value=self._duration_ns / 1e9,
        )

    def _on_submitted(self, summary: Summary, _event: Event) -> None:
        self._submitted += 1
        # Counters that are there at 0 from the first submission: a rate does not see the step from nothing to 1.
        self._counts_of(summary.department)

    def _on_step_failed(self, _summary: Summary, _event: Event) -> None:
        self._steps_failed += 1

    def _on_step_retrying(self, _summary: Summary, _event: Event) -> None:
        self._steps_retrying += 1

    def _on_ended(self, summary: Summary, event: Event) -> None:
        self._counts_of(summary.department)[_ENDS[type(event.detail)]] += 1
        if summary.submitted_at_ns:  # 0 if the row was lost: better no duration than one of decades
            duration_ns = max(0, event.at_ns - summary.submitted_at_ns)
            self._buckets[bisect_left(_BUCKETS_NS, duration_ns)] += 1
            self._duration_ns += duration_ns

    def _counts_of(self, department: str) -> list[int]:
        """Ended runs of a department by status. Only the first names get a row: labels must not grow without bound."""
        name = department[:_LONGEST_NAME] or NONE
        counts = self._departments.get(name)
        if counts is None:
            if len(self._departments) > MOST_DEPARTMENTS:  # NONE is not one of them
                name = OTHER
            counts = self._departments.setdefault(name, [0] * len(_END_NAMES))
        return counts
