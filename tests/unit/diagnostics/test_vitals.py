"""Rates and latencies from two scrapes."""

import pytest

from knhk.cli.top import sparks
from knhk.diagnostics.vitals import Scrape, between

BEFORE = """\
# TYPE knhk_workflows counter
knhk_workflows_total{status="completed",department="a"} 100
knhk_workflows_total{status="completed",department="b"} 10
knhk_workflows_total{status="failed",department="a"} 1
# TYPE knhk_workflow_duration_seconds histogram
knhk_workflow_duration_seconds_bucket{le="0.1"} 50
knhk_workflow_duration_seconds_bucket{le="1.0"} 110
knhk_workflow_duration_seconds_bucket{le="+Inf"} 111
# TYPE knhk_step_duration_seconds histogram
knhk_step_duration_seconds_count{action="http"} 10
knhk_step_duration_seconds_sum{action="http"} 5
# TYPE knhk_ready gauge
knhk_ready 1
# TYPE knhk_check_ok gauge
knhk_check_ok{check="persistence"} 1
# TYPE knhk_workflows_active gauge
knhk_workflows_active 3
"""
AFTER = """\
# TYPE knhk_workflows counter
knhk_workflows_total{status="completed",department="a"} 140
knhk_workflows_total{status="completed",department="b"} 20
knhk_workflows_total{status="failed",department="a"} 5
# TYPE knhk_workflow_duration_seconds histogram
knhk_workflow_duration_seconds_bucket{le="0.1"} 100
knhk_workflow_duration_seconds_bucket{le="1.0"} 164
knhk_workflow_duration_seconds_bucket{le="+Inf"} 165
# TYPE knhk_step_duration_seconds histogram
knhk_step_duration_seconds_count{action="http"} 20
knhk_step_duration_seconds_sum{action="http"} 9
knhk_step_duration_seconds_count{action="process"} 4
knhk_step_duration_seconds_sum{action="process"} 0.4
# TYPE knhk_ready gauge
knhk_ready 0
# TYPE knhk_check_ok gauge
knhk_check_ok{check="persistence"} 0
# TYPE knhk_workflows_active gauge
knhk_workflows_active 7
"""


def test_what_happened_between_two_scrapes() -> None:
    found = between(Scrape.of(BEFORE, 100.0), Scrape.of(AFTER, 102.0))
    assert (found.seconds, found.completed_per_s, found.failed_per_s) == (2.0, 25.0, 2.0)
    assert found.latency.p50_s == pytest.approx(0.054)
    assert found.latency.p99_s == pytest.approx(0.1 + 0.9 * (0.99 * 54 - 50) / 4)
    assert found.active == 7
    assert (found.ready, found.wrong) == (False, ["persistence"])
    http, process = found.actions
    assert (http.action, http.per_s, http.mean_s, http.busy) == ("http", 5.0, 0.4, 2.0)
    assert (process.action, process.per_s) == ("process", 2.0)


def test_nothing_happened() -> None:
    found = between(Scrape.of(BEFORE, 1.0), Scrape.of(BEFORE, 2.0))
    assert found.completed_per_s == 0
    assert found.latency.p50_s is None
    assert found.commit_mean_s is None
    assert found.actions == []
    assert found.ready


def test_a_restart_in_between_gives_no_negative_rates() -> None:
    found = between(Scrape.of(AFTER, 1.0), Scrape.of(BEFORE, 2.0))
    assert found.completed_per_s == 0
    assert found.failed_per_s == 0


def test_sparks() -> None:
    assert sparks([0, 1, 2, 4]) == "▁▃▅█"
    assert sparks([0, 0]) == "▁▁"
    assert sparks([]) == ""
