"""What /metrics shows: a fold that counts every committed event, and the readings of the other parts.

The fold sees millions of events, so it only adds plain integers; Prometheus's types are made from them at a scrape.
Counters begin at 0 with the process, as Prometheus expects. docs/metrics.md lists every name.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.registry import Collector

from knhk.domain.event import (
    Cancelled,
    Completed,
    Detail,
    Event,
    Failed,
    StepCaught,
    StepCompleted,
    StepFailed,
    StepRetrying,
    Submitted,
    TimedOut,
)
from knhk.domain.histogram import Histogram
from knhk.domain.summary import Summary
from knhk.observability.families import histogram_family, labelled_histograms
from knhk.observability.readings import Families, Readings, ReadingsCollector

MOST_DEPARTMENTS: Final = 100
MOST_ACTIONS: Final = 100
OTHER: Final = "other"
NONE: Final = "none"
UNKNOWN: Final = "unknown"
_LONGEST_NAME: Final = 64
_ENDS: Final[dict[type[Detail], int]] = {Completed: 0, Failed: 1, TimedOut: 2, Cancelled: 3}
_END_NAMES: Final = ("completed", "failed", "timed_out", "cancelled")
_FAILED, _TIMED_OUT = 1, 2
_BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0),
)
_STEP_BUCKETS_S: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0)


class Exposition(NamedTuple):
    """The text of a scrape and its content type."""

    body: bytes
    content_type: str


class Metrics(Collector):
    """The metrics of one process: a `ports.fold.Fold`, and what renders them.

    `connect` adds the readings once the other parts are built.
    """

    kinds: Final = frozenset[type[Detail]]({Submitted, StepCompleted, StepFailed, StepCaught, StepRetrying, *_ENDS})

    def __init__(self) -> None:
        self._submitted = self._steps_completed = self._steps_failed = self._steps_retrying = 0
        # The names that alert rules use are there from the first scrape on.
        self._departments: dict[str, list[int]] = {NONE: [0] * len(_END_NAMES)}
        self._durations = Histogram(_BUCKETS_S)
        self._step_durations: dict[str, Histogram] = {}
        self._others: dict[str, Families] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def connect(self, readings: Readings) -> None:
        """Show these readings too."""
        self._registry.register(ReadingsCollector(readings, self._others))

    def show(self, part: str, families: Families) -> None:
        """Show what another part measures too, at every scrape; if that fails, it is missing and counted as failed."""
        self._others[part] = families

    def families(self) -> Iterator[Metric]:
        """Everything that a scrape shows."""
        return iter(self._registry.collect())

    def exposition(self, accept: str = "") -> Exposition:
        """Everything, in the format the `Accept` header asks for: OpenMetrics, or Prometheus's text format 0.0.4."""
        return exposition(self._registry, accept)

    def take(self, summary: Summary, event: Event, action: str) -> None:
        """Count one committed event. Never raises, and takes less than a microsecond."""
        detail = event.detail
        kind = type(detail)
        if kind is StepCompleted:
            self._steps_completed += 1
        elif kind is Submitted:
            self._submitted += 1
            # At 0 from the first submission on: a rate does not see the step from nothing to 1.
            self._counts_of(summary.department)
            return
        elif kind in _ENDS:
            self._ended(summary, event)
            return
        elif kind is StepRetrying:
            self._steps_retrying += 1
        elif kind is StepFailed or kind is StepCaught:
            self._steps_failed += 1
        else:
            return
        self._attempt_took(action, detail.started_at_ns, event.at_ns)  # type: ignore[union-attr]

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
        yield histogram_family(
            "knhk_workflow_duration_seconds",
            "Time from the submission of a workflow to its end.",
            self._durations,
        )
        yield labelled_histograms(
            "knhk_step_duration_seconds",
            "Time that an attempt of a step took, however it ended.",
            "action",
            dict(self._step_durations),
        )
        steps = CounterMetricFamily("knhk_steps", "Attempts of steps, by their outcome.", labels=("status",))
        steps.add_metric(("completed",), self._steps_completed)
        steps.add_metric(("failed",), self._steps_failed)
        steps.add_metric(("retrying",), self._steps_retrying)
        yield steps

    def _ended(self, summary: Summary, event: Event) -> None:
        self._counts_of(summary.department)[_ENDS[type(event.detail)]] += 1
        if summary.submitted_at_ns:  # 0 if the row was lost: better no duration than one of decades
            self._durations.add(max(0, event.at_ns - summary.submitted_at_ns) / 1e9)

    def _attempt_took(self, action: str, started_at_ns: int, ended_at_ns: int) -> None:
        """Steps that waited for a timer have no start: they took no time, and are not counted here."""
        if not started_at_ns:
            return
        durations = self._step_durations.get(action)
        if durations is None:
            name = action[:_LONGEST_NAME] or UNKNOWN
            if len(self._step_durations) >= MOST_ACTIONS:
                name = OTHER
            durations = self._step_durations.setdefault(name, Histogram(_STEP_BUCKETS_S))
        took_ns = ended_at_ns - started_at_ns
        durations.add(took_ns / 1e9 if took_ns > 0 else 0.0)

    def _counts_of(self, department: str) -> list[int]:
        """Ended runs of a department by status. Only the first names get a row: labels must not grow without bound."""
        counts = self._departments.get(department)
        if counts is not None:
            return counts
        name = department[:_LONGEST_NAME] or NONE
        counts = self._departments.get(name)
        if counts is None:
            if len(self._departments) > MOST_DEPARTMENTS:  # NONE is not one of them
                name = OTHER
            counts = self._departments.setdefault(name, [0] * len(_END_NAMES))
        return counts


def exposition(registry: CollectorRegistry, accept: str = "") -> Exposition:
    """All metrics of a registry, as Metrics.exposition gives them."""
    try:
        encode, content_type = choose_encoder(accept)
    except (ValueError, TypeError):  # what the library makes of a version that is none
        encode, content_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
    return Exposition(encode(registry), content_type)
