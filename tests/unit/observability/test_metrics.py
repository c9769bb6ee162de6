"""Metrics: what is counted, that labels stay bounded, and that a broken reading does not cost the scrape."""

import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from knhk.domain import event as ev
from knhk.domain.event import AnyDetail, Event, Failure
from knhk.domain.histogram import SHORT_S, Histogram
from knhk.domain.summary import Summary, fold
from knhk.monitoring.delivery import HttpClient
from knhk.monitoring.incidents import Audience, Ledger
from knhk.monitoring.monitor import Monitor
from knhk.monitoring.service_level import ServiceLevel, Targets
from knhk.observability.exporter import Exporter
from knhk.observability.interpreter import Interpreter
from knhk.observability.metrics import MOST_ACTIONS, MOST_DEPARTMENTS, Metrics
from knhk.observability.otlp import resource
from knhk.observability.readings import Readings, memory_limit_bytes
from knhk.observability.uptime import Uptime
from knhk.persistence.memory import MemoryStore
from knhk.platform.clock import SystemClock

FAILURE = Failure("KNHK-X", "it broke")
SECOND = 1_000_000_000
_OF_STEPS = (ev.StepCompleted, ev.StepFailed, ev.StepRetrying)


def feed(
    metrics: Metrics,
    details: Iterable[AnyDetail],
    *,
    department: str = "",
    step_ns: int = SECOND,
    action: str = "process",
) -> None:
    """One run with these events after its submission, `step_ns` apart."""
    summary = Summary(1)
    for number, detail in enumerate([ev.Submitted("name", department), *details], 1):
        event = Event(1_000 * SECOND + number * step_ns, detail, step="a")
        fold(summary, event)
        metrics.take(summary, event, action if isinstance(event.detail, _OF_STEPS) else "")


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of the text format by name and labels."""
    body, content_type = metrics.exposition()
    assert content_type.startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(body.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[(name, tuple(sorted(labels.items())))]


def readings(**changes: Any) -> Readings:
    seconds, sizes = Histogram(SHORT_S), Histogram((10, 20))
    for size in (7, 13, 20):
        seconds.add(0.002)
        sizes.add(size)
    commits = SimpleNamespace(
        receipts=40, receipt_bytes=4_000, failures=1, batch_receipts=sizes, commit_seconds=seconds
    )
    given: dict[str, Any] = {
        "version": "5.0.0",
        "active": lambda: 4,
        "pending": lambda: 5,
        "commits": lambda: commits,
        "rejections": lambda: {"overloaded": 2},
        "store": lambda: {"wal_bytes": 9.0, "writes_total": 8.0, "odd-name": 1.0},
        "store_histograms": lambda: {"fsync_seconds": seconds},
        "projection_lag": lambda: 6,
        "uptime_percentage": lambda: 99.5,
    }
    return Readings(**(given | changes))


def exporter(clock: SystemClock) -> Exporter:
    return Exporter(
        clock,
        resource("node", "host"),
        lambda: pytest.fail("not to be used"),
        interval_s=1,
        sampling_rate=1.0,
        families=tuple,
        where="nowhere",
    )


def monitor(clock: SystemClock) -> Monitor:
    level = ServiceLevel(clock, Targets(0.999, 0.999, 0.99, 1.0, 1, 1.0), Uptime(MemoryStore(), clock))
    level.history.add(clock.now_ns(), failed=False, slow=False, seconds=0.1)
    store = MemoryStore()
    channel = SimpleNamespace(audience=Audience("slack"), kind="slack")
    return Monitor(
        clock,
        level,
        Ledger("node", cooldown_ns=0, resolve_after_ns=0),
        [channel],  # type: ignore[list-item]
        HttpClient(),
        node="node",
        interval_s=1,
        projections=store,
        journal=store,
        partition=0,
        progress=SimpleNamespace(began=-1, cursor=-1, at_rest=True),
    )


def test_runs_are_counted_by_end_and_department() -> None:
    metrics = Metrics()
    feed(metrics, [ev.Started(), ev.StepCompleted(), ev.Completed()], department="finance")
    feed(metrics, [ev.StepFailed(FAILURE), ev.Failed(FAILURE)], department="finance")
    feed(metrics, [ev.StepRetrying(FAILURE, 1), ev.TimedOut(FAILURE)], department="finance")
    feed(metrics, [ev.Cancelled()])
    assert value(metrics, "knhk_workflows_submitted_total") == 4
    assert value(metrics, "knhk_workflow_errors_total", department="finance") == 2
    assert value(metrics, "knhk_workflow_errors_total", department="none") == 0
    for status, department in (("completed", "finance"), ("failed", "finance"), ("cancelled", "none")):
        assert value(metrics, "knhk_workflows_total", status=status, department=department) == 1
    for status in ("completed", "failed", "retrying"):
        assert value(metrics, "knhk_steps_total", status=status) == 1


def test_errors_are_there_at_zero_before_the_first() -> None:
    metrics = Metrics()
    assert value(metrics, "knhk_workflow_errors_total", department="none") == 0
    feed(metrics, [], department="finance")
    assert value(metrics, "knhk_workflow_errors_total", department="finance") == 0


@pytest.mark.parametrize(("milliseconds", "bound"), [(1, "0.001"), (2, "0.0025"), (1000, "1.0"), (3_600_000, "3600.0")])
def test_durations_fall_into_the_bucket_that_holds_them(milliseconds: int, bound: str) -> None:
    metrics = Metrics()
    feed(metrics, [ev.Completed()], step_ns=milliseconds * 1_000_000)
    name = "knhk_workflow_duration_seconds"
    buckets = {
        dict(labels)["le"]: count for (key, labels), count in samples(metrics).items() if key == f"{name}_bucket"
    }
    assert next(le for le, count in buckets.items() if count) == bound
    assert buckets["+Inf"] == value(metrics, f"{name}_count") == 1
    assert value(metrics, f"{name}_sum") == pytest.approx(milliseconds / 1000)


def test_what_is_longer_than_every_bucket_and_what_has_no_beginning() -> None:
    metrics = Metrics()
    feed(metrics, [ev.Completed()], step_ns=7200 * SECOND)
    metrics.take(Summary(2), Event(SECOND, ev.Completed()), "")
    assert value(metrics, "knhk_workflow_duration_seconds_bucket", le="3600.0") == 0
    assert value(metrics, "knhk_workflow_duration_seconds_count") == 1
    assert value(metrics, "knhk_workflows_total", status="completed", department="none") == 2


def test_departments_are_bounded_in_number_and_length() -> None:
    metrics = Metrics()
    for number in range(MOST_DEPARTMENTS + 50):
        feed(metrics, [ev.Failed(FAILURE)], department=f"{number:03}" + "x" * 10_000)
    names = {dict(labels)["department"] for (name, labels) in samples(metrics) if name == "knhk_workflow_errors_total"}
    assert len(names - {"none", "other"}) == MOST_DEPARTMENTS
    assert max(map(len, names)) == 64
    assert value(metrics, "knhk_workflow_errors_total", department="other") == 50


def test_attempts_are_timed_by_action() -> None:
    metrics = Metrics()
    begun = 1_000 * SECOND
    feed(metrics, [ev.StepRetrying(FAILURE, 1, begun), ev.StepFailed(FAILURE, begun)], action="http")
    feed(metrics, [ev.StepCompleted(begun), ev.StepCompleted()], action="")  # read from the journal; a wait
    name = "knhk_step_duration_seconds"
    assert value(metrics, f"{name}_count", action="http") == 2
    assert value(metrics, f"{name}_sum", action="http") == 2 + 3
    assert value(metrics, f"{name}_count", action="unknown") == 1


def test_actions_are_bounded_in_number_and_length() -> None:
    metrics = Metrics()
    for number in range(MOST_ACTIONS + 50):
        feed(metrics, [ev.StepCompleted(SECOND)], action=f"{number:03}" + "x" * 10_000)
    name = "knhk_step_duration_seconds_count"
    counts = {dict(labels)["action"]: count for (found, labels), count in samples(metrics).items() if found == name}
    assert len(counts) == MOST_ACTIONS + 1
    assert max(map(len, counts)) == 64
    assert counts["other"] == 50


@pytest.mark.parametrize("department", ['quo"te', "new\nline", "back\\slash", "Übermut 日本"])
def test_any_department_can_be_told(department: str) -> None:
    metrics = Metrics()
    feed(metrics, [ev.Failed(FAILURE)], department=department)
    assert value(metrics, "knhk_workflow_errors_total", department=department) == 1


def test_readings_are_read_at_the_scrape() -> None:
    metrics = Metrics()
    now = {"active": 1}
    metrics.connect(readings(active=lambda: now["active"], parked=lambda: 11, checks=lambda: {"persistence": "full"}))
    now["active"] = 2
    assert value(metrics, "knhk_workflows_active") == 2
    assert value(metrics, "knhk_queue_depth") == 5
    assert value(metrics, "knhk_workflows_parked") == 11
    assert value(metrics, "knhk_commits_total") == 3
    assert value(metrics, "knhk_receipt_bytes_total") == 4_000
    assert value(metrics, "knhk_commit_seconds_sum") == pytest.approx(0.006)
    assert value(metrics, "knhk_commit_seconds_bucket", le="0.0025") == 3
    assert [value(metrics, "knhk_commit_batch_receipts_bucket", le=le) for le in ("10.0", "20.0", "+Inf")] == [1, 3, 3]
    assert value(metrics, "knhk_store_fsync_seconds_count") == 3
    assert 1 <= value(metrics, "knhk_cpu_cores") <= 4096
    assert value(metrics, "knhk_memory_limit_bytes") > 1 << 20
    assert value(metrics, "knhk_admission_rejections_total", reason="overloaded") == 2
    assert value(metrics, "knhk_store_wal_bytes") == 9
    assert value(metrics, "knhk_store_writes_total") == 8
    assert value(metrics, "knhk_store_odd_name") == 1
    assert value(metrics, "knhk_projection_lag_blocks") == 6
    assert value(metrics, "knhk_uptime_percentage") == 99.5
    assert value(metrics, "knhk_check_ok", check="persistence") == 0
    assert value(metrics, "process_resident_memory_bytes") > 0
    assert value(metrics, "process_cpu_seconds_total") > 0


def test_rooms_that_are_absent_have_no_check() -> None:
    metrics = Metrics()
    metrics.connect(readings(checks=lambda: {"persistence": "ok", "learning": "absent"}))
    checks = {labels: found for (name, labels), found in samples(metrics).items() if name == "knhk_check_ok"}
    assert checks == {(("check", "persistence"),): 1}


def test_a_broken_reading_costs_its_own_figures_only() -> None:
    def broken() -> dict[str, float]:
        raise RuntimeError("closed")

    metrics = Metrics()
    metrics.connect(readings(store=broken))
    found = samples(metrics)
    assert not [name for name, _ in found if name.startswith("knhk_store_")]
    assert value(metrics, "knhk_scrape_failures_total", reading="store") == 2
    assert value(metrics, "knhk_workflows_active") == 4


def test_openmetrics_on_request_and_nonsense_is_plain_text() -> None:
    metrics = Metrics()
    metrics.connect(readings())
    feed(metrics, [ev.Completed()], department="finance")
    body, content_type = metrics.exposition("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in parse_openmetrics(body.decode())}
    assert {"knhk_workflow_errors", "knhk_workflow_duration_seconds", "knhk_uptime_percentage"} <= names
    for accept in ("application/openmetrics-text; version=x.y", ";;;,,,", "text/plain; version=nine", "\x00"):
        assert metrics.exposition(accept).body


def test_every_name_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`((?:knhk|process)_[a-z_]+)", text))
    metrics = Metrics()
    clock = SystemClock()
    metrics.show("interpreter", Interpreter(clock).families)
    metrics.show("telemetry", exporter(clock).families)
    metrics.show("monitoring", monitor(clock).families)
    metrics.connect(
        readings(
            store=dict,
            parked=lambda: 0,
            steps_running=lambda: 0,
            steps_waiting=lambda: 0,
            free_bytes=lambda: 0,
            checks=lambda: {"persistence": "ok"},
        )
    )
    exposed = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in parse_text(metrics.exposition().body.decode())
    }
    assert exposed <= documented
    assert {"knhk_workflow_errors_total", "knhk_workflow_duration_seconds", "knhk_uptime_percentage"} <= exposed


def test_two_instances_do_not_share_anything() -> None:
    one, other = Metrics(), Metrics()
    feed(one, [])
    assert value(other, "knhk_workflows_submitted_total") == 0


@pytest.mark.parametrize(("written", "limited"), [("max\n", False), ("1048576\n", True), (None, False)])
def test_the_memory_limit_is_the_containers_or_the_machines(tmp_path: Path, written: str | None, limited: bool) -> None:
    if written is not None:
        (tmp_path / "memory.max").write_text(written)
    assert (memory_limit_bytes(tmp_path) == 1 << 20) is limited
