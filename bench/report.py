"""Shows a report as tables, or as ratios to an earlier one."""

from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.results import Phase, Report, WorkloadResult

NOT_KNOWN = "-"
_COMPARED: Final[tuple[tuple[str, Callable[[Phase], float]], ...]] = (
    ("workflows/s", lambda phase: phase.per_s),
    ("p50", lambda phase: phase.latencies.p50_ms),
    ("p99", lambda phase: phase.latencies.p99_ms),
    ("server CPU", lambda phase: phase.server_cpu_us),
    ("bytes", lambda phase: phase.write_bytes),
)


def show(report: Report, console: Console) -> None:
    """Print what was measured."""
    machine = report.machine
    console.print(
        f"{machine.cores} cores, {machine.memory_gb} GB, {machine.python}, {machine.system}, {machine.filesystem}: "
        f"fsync p50 {machine.fsync.p50_ms:.2f} ms, p99 {machine.fsync.p99_ms:.2f} ms; "
        f"CPU probe {machine.cpu_probe_ms:.1f} ms",
        highlight=False,
    )
    console.print(_phases_table(report))
    console.print(_workloads_table(report))
    for workload in report.workloads:
        for problem in workload.problems:
            console.print(f"[bold red]{workload.name} FAILED:[/] ", end="")
            console.print(problem, markup=False, highlight=False)


def show_comparison(report: Report, other: Report, console: Console) -> None:
    """Print new / old for each figure that both have; the CPU probe says how much of it is the machine's own doing."""
    table = Table(title="ratio to the other report (new / old)")
    table.add_column("workload")
    table.add_column("answer at")
    for name, _ in _COMPARED:
        table.add_column(name, justify="right")
    table.add_column("CPU probe", justify="right")
    for new, old in _pairs(report, other):
        probe = _ratio(new.cpu_probe_ms, old.cpu_probe_ms)
        earlier = {phase.measure: phase for phase in old.phases}
        for phase in new.phases:
            if phase.measure in earlier:
                ratios = [_ratio(of(phase), of(earlier[phase.measure])) for _, of in _COMPARED]
                table.add_row(new.name, phase.measure, *ratios, probe)
        for figure, value in new.figures.items():
            if figure in old.figures:
                table.add_row(new.name, figure, _ratio(value, old.figures[figure]), "", "", "", "", probe)
    console.print(table)
    if report.machine.cores != other.machine.cores or report.settings != other.settings:
        console.print("The reports differ in cores or settings; their ratios say little.")


def _pairs(report: Report, other: Report) -> Iterator[tuple[WorkloadResult, WorkloadResult]]:
    earlier = {workload.name: workload for workload in other.workloads}
    for workload in report.workloads:
        if workload.name in earlier:
            yield workload, earlier[workload.name]


def _ratio(new: float, old: float) -> str:
    return f"{new / old:.2f}" if old else NOT_KNOWN


def _phases_table(report: Report) -> Table:
    table = Table(title="latencies in ms, costs per workflow")
    table.add_column("workload")
    table.add_column("answer at")
    for name in (
        "wf/s",
        "p50",
        "p90",
        "p99",
        "max",
        "lag p99",
        "server us",
        "client us",
        "bytes",
        "fsyncs",
        "drain s",
        "refused",
    ):
        table.add_column(name, justify="right")
    for workload in report.workloads:
        for phase in workload.phases:
            table.add_row(workload.name, phase.measure, *_cells(phase))
    return table


def _cells(phase: Phase) -> list[str]:
    latencies = phase.latencies
    return [
        f"{phase.per_s:,.0f}" if phase.per_s >= 100 else f"{phase.per_s:.2f}",
        f"{latencies.p50_ms:.2f}",
        f"{latencies.p90_ms:.2f}",
        f"{latencies.p99_ms:.2f}",
        f"{latencies.max_ms:.2f}",
        f"{phase.lag.p99_ms:.2f}" if phase.lag.count else NOT_KNOWN,
        f"{phase.server_cpu_us:,.1f}",
        f"{phase.client_cpu_us:,.1f}",
        f"{phase.write_bytes:,.0f}",
        NOT_KNOWN if phase.fsyncs is None else f"{phase.fsyncs:.3f}",
        f"{phase.drain_s:.2f}",
        f"{phase.refused:,}",
    ]


def _workloads_table(report: Report) -> Table:
    table = Table(title="the runs")
    for name in (
        "workload",
        "runs",
        "receipts verified",
        "verify s",
        "start s",
        "stop s",
        "CPU probe ms",
        "figures",
        "result",
    ):
        table.add_column(name, justify="left" if name in ("workload", "figures", "result") else "right")
    for workload in report.workloads:
        figures = "\n".join(f"{name} {value:,.2f}" for name, value in workload.figures.items())
        if workload.flame_graph:
            figures += f"\nflame graph {workload.flame_graph}"
        table.add_row(
            workload.name,
            f"{workload.runs:,}",
            f"{workload.receipts_verified:,}",
            f"{workload.verify_s:.2f}",
            f"{workload.start_s:.2f}",
            f"{workload.stop_s:.2f}",
            f"{workload.cpu_probe_ms:.1f}",
            figures.strip(),
            "[red]FAILED[/]" if workload.problems else "ok",
        )
    return table
