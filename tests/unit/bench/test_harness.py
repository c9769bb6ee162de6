"""The whole harness against a fake server: it measures, and it fails loudly when something is lost."""

import sys
from pathlib import Path

import msgspec
import pytest
from bench.harness import run
from bench.operations import read_metrics
from bench.report import show, show_comparison
from bench.results import Report, WorkloadResult
from bench.settings import Settings
from bench.workloads import WORKLOADS
from rich.console import Console

FAKE = str(Path(__file__).with_name("fake_server.py"))


def measure(tmp_path: Path, *names: str, fault: str = "") -> Report:
    settings = Settings(
        directory=tmp_path,
        seconds=0.3,
        warmup_s=0.1,
        connections=8,
        dag_steps=200,
        waiting_runs=250,
        serve_command=(sys.executable, FAKE, "--config", "{config}", "--fault", fault),
        verify_command=(sys.executable, FAKE, "--data", "{data}"),
    )
    return run(settings, [workload for workload in WORKLOADS if workload.name in names], lambda text: None)


def one(tmp_path: Path, name: str, fault: str = "") -> WorkloadResult:
    (result,) = measure(tmp_path, name, fault=fault).workloads
    return result


def test_a_closed_loop_measures_both_answers_and_verifies(tmp_path: Path) -> None:
    result = one(tmp_path, "two")
    assert result.problems == []
    assert [phase.measure for phase in result.phases] == ["completed", "submit"]
    assert all(phase.per_s > 100 and phase.latencies.count > 30 for phase in result.phases)
    assert all(phase.server_cpu_us > 0 and phase.client_cpu_us > 0 for phase in result.phases)
    assert result.runs == sum(phase.runs for phase in result.phases)
    assert result.receipts_verified == 3 * result.runs
    assert list(tmp_path.iterdir()) == []


def test_an_open_loop_keeps_its_rate(tmp_path: Path) -> None:
    result = one(tmp_path, "open-1000")
    assert result.problems == []
    # 0.4 s at 1000/s, twice; each arrival is sent once, whatever the machine is doing.
    assert [phase.runs for phase in result.phases] == [400, 400]
    assert all(phase.latencies.count == 300 for phase in result.phases)
    assert all(phase.lag.count == 400 for phase in result.phases)


def test_a_big_dag_is_timed(tmp_path: Path) -> None:
    result = one(tmp_path, "dag-10000")
    assert result.problems == []
    assert result.runs == 3
    assert result.figures["seconds_to_completed"] > 0


def test_waiting_runs_are_counted_after_a_restart(tmp_path: Path) -> None:
    result = one(tmp_path, "waiting")
    assert result.problems == []
    assert result.runs == 250
    assert result.figures["seconds_to_ready_again"] > 0
    assert result.figures["rss_parked_mb"] > 1


@pytest.mark.parametrize(
    ("fault", "name", "complaint"),
    [
        ("lose", "two", "had not ended"),
        ("fail", "two", "otherwise than completed"),
        ("refuse", "open-1000", "refused"),
    ],
)
def test_a_server_that_misbehaves_fails_the_workload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, name: str, complaint: str
) -> None:
    monkeypatch.setattr("bench.session.DRAIN_LIMIT_AFTER_ERRORS_S", 0.1)
    assert any(complaint in problem for problem in one(tmp_path, name, fault).problems)


def test_runs_lost_after_the_answer_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.session.DRAIN_LIMIT_AFTER_ERRORS_S", 0.1)
    problems = one(tmp_path, "two", "lose").problems
    assert any("were accepted, but the server counts" in problem for problem in problems)


def test_a_server_that_does_not_start_is_reported_with_what_it_said(tmp_path: Path) -> None:
    settings = Settings(directory=tmp_path, serve_command=(sys.executable, "-c", "raise SystemExit('no disk')"))
    report = run(settings, WORKLOADS[:1], lambda text: None)
    assert report.failed
    assert "no disk" in report.workloads[0].problems[0]


def test_a_report_survives_json_and_can_be_shown_and_compared(tmp_path: Path) -> None:
    report = measure(tmp_path, "two", "dag-10000")
    again = msgspec.json.decode(msgspec.json.encode(report), type=Report)
    assert again == report
    console = Console(record=True, width=170, file=(tmp_path / "out").open("w"))
    with console.file:
        show(again, console)
        show_comparison(report, again, console)
    text = console.export_text()
    assert "two" in text
    assert "1.00" in text
    assert "FAILED" not in text


def test_metrics_are_read() -> None:
    text = (
        '# TYPE knhk_workflows counter\nknhk_workflows_total{status="completed"} 5\nknhk_fsyncs_total 3\n'
        "knhk_fsync_seconds_total 9.5\nknhk_fsync_seconds_count 3\nother 1\n"
    )
    assert read_metrics(text).workflows == {"completed": 5}
    assert read_metrics(text).fsyncs == 3
    assert read_metrics("other 1\n").fsyncs is None
