"""What the metrics read from the other parts at the moment of a scrape, and how it is named.

The parts are not known here: the composition root hands over callables. A callable that fails costs its own figures
and is counted in `knhk_scrape_failures_total`; it never costs the scrape.
"""

import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

OK: Final = "ok"
ABSENT: Final = "absent"
_NOT_IN_A_NAME: Final = re.compile(r"[^a-zA-Z0-9_]")
_TOTAL: Final = "_total"
_UNREADABLE: Final = "Readings that failed during a scrape and whose figures are missing from it."

_ACTIVE: Final = "Workflows that have a slot and are in memory."
_QUEUE: Final = "Workflows that are accepted and wait for a slot."
_PARKED: Final = "Workflows that only wait and are kept on disk."
_STEPS_RUNNING: Final = "Attempts of steps that are under way."
_STEPS_WAITING: Final = "Attempts of steps that wait for a place."
_LAG: Final = "Committed blocks that the projections do not show yet."
_FREE: Final = "Free space where the store writes."
_UPTIME: Final = "Share of the last 30 days, or since the first start, in which a process was alive, in percent."


class CommitStatistics(Protocol):
    """Counters since the start of the process."""

    @property
    def batches(self) -> int: ...
    @property
    def receipts(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def last_batch_receipts(self) -> int: ...
    @property
    def commit_seconds(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Callables that tell the present; called at every scrape on the event loop, so they must be quick.

    `store` gives figures by name; a name that ends in `_total` is a counter. `checks` gives one text a room: `ok`,
    `absent`, or what is wrong. What is None is not shown.
    """

    version: str
    active: Callable[[], int]
    pending: Callable[[], int]
    commits: Callable[[], CommitStatistics]
    rejections: Callable[[], Mapping[str, int]]
    store: Callable[[], Mapping[str, float]]
    projection_lag: Callable[[], int]
    uptime_percentage: Callable[[], float]
    parked: Callable[[], int] | None = None
    steps_running: Callable[[], int] | None = None
    steps_waiting: Callable[[], int] | None = None
    free_bytes: Callable[[], int] | None = None
    checks: Callable[[], Mapping[str, str]] | None = None


class ReadingsCollector(Collector):
    """Turns readings into metric families."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings
        self._process = psutil.Process()
        self._failures: dict[str, int] = {}

    def collect(self) -> Iterator[Metric]:
        for name, families in self._parts():
            try:
                yield from families()
            except Exception:  # a closed store, a process that is half started: the rest is worth more than this
                self._failures[name] = self._failures.get(name, 0) + 1
        failures = CounterMetricFamily("knhk_scrape_failures", _UNREADABLE, labels=("reading",))
        for name, count in self._failures.items():
            failures.add_metric((name,), count)
        yield failures

    def _parts(self) -> Iterator[tuple[str, Callable[[], Sequence[Metric]]]]:
        readings = self._readings
        for name, text, read in (
            ("knhk_workflows_active", _ACTIVE, readings.active),
            ("knhk_queue_depth", _QUEUE, readings.pending),
            ("knhk_workflows_parked", _PARKED, readings.parked),
            ("knhk_steps_running", _STEPS_RUNNING, readings.steps_running),
            ("knhk_steps_waiting", _STEPS_WAITING, readings.steps_waiting),
            ("knhk_projection_lag_blocks", _LAG, readings.projection_lag),
            ("knhk_free_bytes", _FREE, readings.free_bytes),
            ("knhk_uptime_percentage", _UPTIME, readings.uptime_percentage),
        ):
            if read is not None:
                yield name, _Gauge(name, text, read)
        yield "commits", self._commits
        yield "rejections", self._rejections
        yield "store", self._store
        yield "checks", self._checks
        yield "process", self._input_output
        yield "build", self._build

    def _commits(self) -> list[Metric]:
        found = self._readings.commits()
        return [
            CounterMetricFamily("knhk_commits", "Group commits, each one block and one sync.", found.batches),
            CounterMetricFamily("knhk_receipts", "Receipts that were committed.", found.receipts),
            CounterMetricFamily("knhk_commit_failures", "Appends that failed and were tried again.", found.failures),
            CounterMetricFamily("knhk_commit_seconds", "Time spent in appends, sync included.", found.commit_seconds),
            GaugeMetricFamily(
                "knhk_last_commit_receipts", "Receipts in the last group commit.", found.last_batch_receipts
            ),
        ]

    def _rejections(self) -> list[Metric]:
        family = CounterMetricFamily("knhk_admission_rejections", "Submissions not let in.", labels=("reason",))
        for reason, count in self._readings.rejections().items():
            family.add_metric((reason,), count)
        return [family]

    def _store(self) -> list[Metric]:
        found: list[Metric] = []
        for name, value in sorted(self._readings.store().items()):
            full = f"knhk_store_{_NOT_IN_A_NAME.sub('_', name)}"
            text = f"The store's figure {name}."
            if full.endswith(_TOTAL):
                found.append(CounterMetricFamily(full.removesuffix(_TOTAL), text, value))
            else:
                found.append(GaugeMetricFamily(full, text, value))
        return found

    def _checks(self) -> list[Metric]:
        if self._readings.checks is None:
            return []
        family = GaugeMetricFamily("knhk_check_ok", "Whether a built part is well, as /health says.", labels=("check",))
        for room, text in self._readings.checks().items():
            if text != ABSENT:
                family.add_metric((room,), text == OK)
        return [family]

    def _input_output(self) -> list[Metric]:
        """Disk traffic of the process and network traffic of its host or container, as the kernel counts them."""
        disk, network = self._process.io_counters(), psutil.net_io_counters()
        return [
            CounterMetricFamily("knhk_disk_read_bytes", "Bytes this process had read from disks.", disk.read_bytes),
            CounterMetricFamily("knhk_disk_written_bytes", "Bytes this process sent to disks.", disk.write_bytes),
            CounterMetricFamily("knhk_network_received_bytes", "Bytes the host received.", network.bytes_recv),
            CounterMetricFamily("knhk_network_sent_bytes", "Bytes the host sent.", network.bytes_sent),
        ]

    def _build(self) -> list[Metric]:
        family = GaugeMetricFamily("knhk_build_info", "The version that runs.", labels=("version", "python"))
        family.add_metric((self._readings.version, platform.python_version()), 1)
        return [family]


class _Gauge:
    """One reading as one gauge."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._name, self._text, self._read = name, text, read

    def __call__(self) -> list[Metric]:
        return [GaugeMetricFamily(self._name, self._text, self._read())]
