"""What the metrics read from the other parts at the moment of a scrape, and how it is named.

The parts are not known here: the composition root hands over callables. A callable that fails costs its own figures
and is counted in `knhk_scrape_failures_total`; it never costs the scrape.
"""

import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from knhk.domain.histogram import Histogram
from knhk.observability.families import histogram_family

Families = Callable[[], Iterable[Metric]]
OK: Final = "ok"
ABSENT: Final = "absent"
WARNING: Final = "warning: "
"""How a check's text begins that tells of trouble to come: everything still works."""
_NOT_IN_A_NAME: Final = re.compile(r"[^a-zA-Z0-9_]")
_TOTAL: Final = "_total"
_CONTROL_GROUP: Final = Path("/sys/fs/cgroup")
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
    def receipts(self) -> int: ...
    @property
    def receipt_bytes(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def batch_receipts(self) -> Histogram: ...
    @property
    def commit_seconds(self) -> Histogram: ...


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Callables that tell the present; called at every scrape on the event loop, so they must be quick.

    `store` and `recovery` give figures by name; a name that ends in `_total` is a counter. `checks` gives one text a
    room: `ok`, `absent`, or what is wrong. What is None is not shown.
    """

    version: str
    active: Callable[[], int]
    pending: Callable[[], int]
    commits: Callable[[], CommitStatistics]
    rejections: Callable[[], Mapping[str, int]]
    store: Callable[[], Mapping[str, float]]
    store_histograms: Callable[[], Mapping[str, Histogram]]
    projection_lag: Callable[[], int]
    uptime_percentage: Callable[[], float]
    parked: Callable[[], int] | None = None
    steps_running: Callable[[], int] | None = None
    steps_waiting: Callable[[], int] | None = None
    free_bytes: Callable[[], int] | None = None
    checks: Callable[[], Mapping[str, str]] | None = None
    recovery: Callable[[], Mapping[str, float]] | None = None


class ReadingsCollector(Collector):
    """Turns readings into metric families."""

    def __init__(self, readings: Readings, others: Mapping[str, Families]) -> None:
        self._readings, self._others = readings, others
        self._process = psutil.Process()
        self._failures: dict[str, int] = {}

    def collect(self) -> Iterator[Metric]:
        for name, families in (*self._parts(), *self._others.items()):
            self._failures.setdefault(name, 0)  # so that a rate sees the first one
            try:
                yield from list(families())
            except Exception:  # a closed store, a process that is half started: the rest is worth more than this
                self._failures[name] += 1
        failures = CounterMetricFamily("knhk_scrape_failures", _UNREADABLE, labels=("reading",))
        for name, count in self._failures.items():
            failures.add_metric((name,), count)
        yield failures

    def _parts(self) -> Iterator[tuple[str, Families]]:
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
        yield "recovery", self._recovery
        yield "checks", self._checks
        yield "process", self._input_output
        yield "machine", self._machine
        yield "build", self._build

    def _commits(self) -> list[Metric]:
        found = self._readings.commits()
        return [
            CounterMetricFamily("knhk_commits", "Group commits: one block each.", found.commit_seconds.count),
            CounterMetricFamily("knhk_receipts", "Receipts that were committed.", found.receipts),
            CounterMetricFamily("knhk_receipt_bytes", "Bytes of committed receipts.", found.receipt_bytes),
            CounterMetricFamily("knhk_commit_failures", "Appends that failed and were tried again.", found.failures),
            histogram_family("knhk_commit_seconds", "Time of a group commit, sync included.", found.commit_seconds),
            histogram_family("knhk_commit_batch_receipts", "Receipts in a group commit.", found.batch_receipts),
        ]

    def _rejections(self) -> list[Metric]:
        family = CounterMetricFamily("knhk_admission_rejections", "Submissions not let in.", labels=("reason",))
        for reason, count in self._readings.rejections().items():
            family.add_metric((reason,), count)
        return [family]

    def _store(self) -> list[Metric]:
        found = _figures("knhk_store", "The store's figure", self._readings.store())
        for name, histogram in self._readings.store_histograms().items():
            found.append(histogram_family(f"knhk_store_{name}", f"The store's figure {name}.", histogram))
        return found

    def _recovery(self) -> list[Metric]:
        if self._readings.recovery is None:
            return []
        return _figures("knhk_recovery", "Recovery's figure", self._readings.recovery())

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

    def _machine(self) -> list[Metric]:
        """What the process may use at most: its share of load is what it uses divided by these."""
        return [
            GaugeMetricFamily("knhk_cpu_cores", "Processors that this process may use.", len(os.sched_getaffinity(0))),
            GaugeMetricFamily("knhk_memory_limit_bytes", "Memory that this process may use.", memory_limit_bytes()),
        ]

    def _build(self) -> list[Metric]:
        family = GaugeMetricFamily("knhk_build_info", "The version that runs.", labels=("version", "python"))
        family.add_metric((self._readings.version, platform.python_version()), 1)
        return [family]


def _figures(prefix: str, whose: str, figures: Mapping[str, float]) -> list[Metric]:
    """Figures by name as families; a name that ends in `_total` is a counter."""
    found: list[Metric] = []
    for name, value in sorted(figures.items()):
        full = f"{prefix}_{_NOT_IN_A_NAME.sub('_', name)}"
        text = f"{whose} {name}."
        if full.endswith(_TOTAL):
            found.append(CounterMetricFamily(full.removesuffix(_TOTAL), text, value))
        else:
            found.append(GaugeMetricFamily(full, text, value))
    return found


class _Gauge:
    """One reading as one gauge."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._name, self._text, self._read = name, text, read

    def __call__(self) -> list[Metric]:
        return [GaugeMetricFamily(self._name, self._text, self._read())]


def memory_limit_bytes(control_group: Path = _CONTROL_GROUP) -> int:
    """The container's limit (cgroup v2), or the machine's memory if there is none."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int((control_group / "memory.max").read_text()))
    except (OSError, ValueError):  # no cgroup v2, or `max`
        return total
