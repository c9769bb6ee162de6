"""The metrics of several processes as those of one server."""

from collections.abc import Iterable

from prometheus_client.core import Metric

from knhk.processes.exposition import Merger


def scrape(done: int, running: int, *, free: int = 100, cores: int = 2, height: int = 7) -> str:
    return f"""\
# HELP knhk_workflows_total Ended.
# TYPE knhk_workflows_total counter
knhk_workflows_total{{status="completed"}} {done}
# HELP knhk_workflow_duration_seconds Time.
# TYPE knhk_workflow_duration_seconds histogram
knhk_workflow_duration_seconds_bucket{{le="1.0"}} {done - 1}
knhk_workflow_duration_seconds_bucket{{le="+Inf"}} {done}
knhk_workflow_duration_seconds_count {done}
knhk_workflow_duration_seconds_sum {done / 2}
# HELP knhk_workflows_active Running.
# TYPE knhk_workflows_active gauge
knhk_workflows_active {running}
# HELP knhk_free_bytes Free.
# TYPE knhk_free_bytes gauge
knhk_free_bytes {free}
# HELP knhk_cpu_cores Cores.
# TYPE knhk_cpu_cores gauge
knhk_cpu_cores {cores}
# HELP knhk_recovery_shipped_height Height.
# TYPE knhk_recovery_shipped_height gauge
knhk_recovery_shipped_height {height}
"""


def values(families: Iterable[Metric]) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(f"{name}={value}" for name, value in sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_adds_up_is_summed_and_what_does_not_is_told_apart() -> None:
    merger = Merger()
    found = values(merger.merged({0: (10, scrape(5, 1, free=90)), 1: (11, scrape(3, 2, height=9))}))
    assert found["knhk_workflows_total", "status=completed"] == 8
    assert found["knhk_workflow_duration_seconds_bucket", "le=1.0"] == 6
    assert found["knhk_workflow_duration_seconds_count", ""] == 8
    assert found["knhk_workflow_duration_seconds_sum", ""] == 4
    assert found["knhk_workflows_active", ""] == 3
    assert found["knhk_free_bytes", ""] == 90
    assert found["knhk_cpu_cores", ""] == 2
    assert found["knhk_recovery_shipped_height", "process=0"] == 7
    assert found["knhk_recovery_shipped_height", "process=1"] == 9


def test_no_counter_goes_back_when_a_process_is_started_again() -> None:
    merger = Merger()
    merger.merged({0: (10, scrape(5, 1)), 1: (11, scrape(3, 2))})
    gone = values(merger.merged({0: (10, scrape(6, 1))}))
    assert gone["knhk_workflows_total", "status=completed"] == 9
    assert gone["knhk_workflows_active", ""] == 1
    back = values(merger.merged({0: (10, scrape(6, 1)), 1: (12, scrape(2, 1))}))
    assert back["knhk_workflows_total", "status=completed"] == 11
    assert back["knhk_workflow_duration_seconds_count", ""] == 11
