"""Verification for people: the progress bar while it runs, the report when it is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from knhk.cli.output import print_fields, stderr, stdout

if TYPE_CHECKING:
    from knhk.persistence.scanner import Progress
    from knhk.persistence.verification import Report


@contextmanager
def progress_bar() -> "Iterator[Progress]":
    """A bar on stderr for each stage, if that is a terminal; otherwise nothing is shown."""
    console = stderr()
    if not console.is_terminal:
        yield lambda _stage, _done, _total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield show


def print_report(report: "Report", subject: str) -> None:
    """What was verified, what is wrong with it, and the verdict."""
    print_fields(
        (name, getattr(report, name))
        for name in (
            "total_count",
            "verified_count",
            "signature_failures",
            "chain_breaks",
            "time_reversals",
            "missing",
            "corrupt",
            "locked",
            "pruned",
            "blocks",
            "workflows",
        )
    )
    console = stdout()
    for problem in report.problems:
        console.print(f"  {problem}", style="red", markup=False)
    if report.problem_count > len(report.problems):
        console.print(f"  and {report.problem_count - len(report.problems)} more", style="red")
    for sentence in report.notes:
        console.print(f"  {sentence}", markup=False)
    if report.valid and report.locked:
        text = "blocks, signatures and hashes verified; what is encrypted was not read, for want of its key"
        console.print(f"{subject}: {text}", style="yellow", markup=False)
    elif report.valid:
        console.print(f"{subject}: all {report.total_count} receipts verified", style="green", markup=False)
    else:
        console.print(f"{subject}: INVALID", style="bold red", markup=False)
