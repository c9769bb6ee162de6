"""`knhk trace workflow ID`: the run as a tree of steps with a bar for each attempt on a common time line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from knhk.cli.options import SERVER, IdArgument, OutputOption, ServerOption
from knhk.cli.output import Output, emit, stdout, style_of

if TYPE_CHECKING:
    from knhk.diagnostics.timing import Step, Timing

app = typer.Typer(name="trace", help="Look at runs in time.", no_args_is_help=True, rich_markup_mode=None)

OfflineOption = Annotated[
    Path | None,
    typer.Option("--data", help="Read this data directory instead of asking a server."),
]
_MOST_STEPS: Final = 60
_NAME_WIDTH: Final = 34
_LEAST_SHARE: Final = 0.001


@app.callback()
def root() -> None:
    """Look at runs in time."""


@app.command("workflow")
def trace_workflow(
    context: typer.Context,
    workflow_id: IdArgument,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show at most so many steps.")] = _MOST_STEPS,
    server: ServerOption = SERVER,
    data: OfflineOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """What each attempt of each step waited for and took, and the critical path."""
    from knhk.cli.bars import plain
    from knhk.cli.runs import runs_of
    from knhk.diagnostics.timing import critical_path

    with runs_of(server, context, data) as runs:
        shown, receipts = runs.run(workflow_id)
    timing = read_timing(shown, receipts)
    answer = plain(timing) | {"state": shown["state"], "critical_path": plain(critical_path(timing))}
    emit(answer, output, lambda: print_timing(timing, shown["state"], limit))


def read_timing(shown: dict[str, Any], receipts: list[dict[str, Any]]) -> "Timing":
    """The timing of a run as it was answered."""
    import time

    from knhk.diagnostics.timing import timing_of

    return timing_of(receipts, shown.get("steps") or [], time.time_ns())


def print_timing(timing: "Timing", state: str, limit: int = _MOST_STEPS) -> None:
    """The tree with its bars, and below it what the time went to."""
    from rich.table import Table
    from rich.text import Text

    from knhk.cli.bars import TimeBar, attempt_bar, legend, took
    from knhk.diagnostics.timing import Segment, critical_path

    console = stdout()
    begin, end = timing.submitted_ns, timing.ended_ns
    path = critical_path(timing)
    critical = {segment.step for segment in path}
    head = Text.assemble((timing.workflow_id, "bold"), f" {timing.name}  ", (state, style_of(state)))
    console.print(head.append(f" {'after' if timing.ended else 'for'} {took(timing.took_ns)}"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    table.add_column("step", no_wrap=True, overflow="ellipsis", max_width=_NAME_WIDTH)
    table.add_column("action", no_wrap=True, overflow="ellipsis", max_width=20, style="dim")
    table.add_column("attempts", justify="right")
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column(_axis(timing.took_ns), ratio=1)
    if timing.started_ns - begin > timing.took_ns * _LEAST_SHARE:
        slot = [(Segment("queue", begin, timing.started_ns), "")]
        table.add_row(Text("(slot)", "dim"), "", "", took(timing.started_ns - begin), TimeBar(slot, begin, end))
    steps = list(timing.steps.values())
    for step, lead in _tree(steps[:limit]):
        name = Text.assemble((lead, "dim"), (_own(step), "bold" if step.path in critical else ""))
        name.append(" " + step.state if step.state not in ("completed",) else "", style_of(step.state))
        bar = attempt_bar(step.attempts, begin, end)
        count = str(len(step.attempts)) if len(step.attempts) != 1 else ""
        table.add_row(name, step.action, count, took(step.to_ns - step.from_ns) if step.attempts else "", bar)
    console.print(table)
    if len(steps) > limit:
        console.print(Text(f"{len(steps) - limit} more steps: --limit {len(steps)}", "dim"))
    console.print()
    print_shares(path, timing.took_ns)
    console.print(
        legend({segment.kind for segment in path} | {one.kind for s in steps for a in s.attempts for one in a.segments})
    )


def print_attempts(timing: "Timing") -> None:
    """The attempts that did not succeed at once, with what they failed of; nothing if all did."""
    from rich.table import Table
    from rich.text import Text

    from knhk.cli.bars import took

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("step", "attempt", "outcome", "began", "took"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("began", "took") else "left")
    table.add_column("failure", overflow="fold")
    for step in timing.steps.values():
        for attempt in step.attempts if len(step.attempts) > 1 or step.state not in ("completed", "skipped") else ():
            execution = next((one for one in attempt.segments if one.kind == "execution"), attempt.segments[0])
            failure = attempt.failure or {}
            table.add_row(
                step.path,
                str(attempt.number),
                Text(attempt.outcome, style_of(attempt.outcome)),
                f"+{took(execution.from_ns - timing.submitted_ns)}",
                took(execution.took_ns),
                Text(f"{failure['code']}: {failure['message']}" if failure else ""),
            )
    if table.row_count:
        console = stdout()
        console.print()
        console.print(table)


def print_shares(path: list[Any], total_ns: int) -> None:
    """What the time on a critical path went to, by kind and step, greatest first."""
    from rich.table import Table
    from rich.text import Text

    from knhk.cli.bars import LOOKS, share_bar, took

    sums: dict[tuple[str, str], int] = {}
    for segment in path:
        key = (segment.kind, segment.step)
        sums[key] = sums.get(key, 0) + segment.took_ns
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("critical path", "step", "took", "", "share"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("took", "share") else "left")
    for (kind, step), spent in sorted(sums.items(), key=lambda item: -item[1])[:8]:
        share = spent / max(total_ns, 1)
        if share < _LEAST_SHARE:
            break
        style = LOOKS[kind][1]
        table.add_row(Text(kind, style), step or "-", took(spent), share_bar(share, style=style), f"{share:.1%}")
    stdout().print(table)


def _axis(total_ns: int) -> str:
    from knhk.cli.bars import took

    return f"0 to {took(total_ns)}"


def _own(step: "Step") -> str:
    """A step's own part of its path: what stands behind the last slash."""
    return step.path.rpartition("/")[2]


def _tree(steps: "list[Step]") -> "list[tuple[Step, str]]":
    """The steps, each below the one it is inside of, with what is drawn before its name."""
    order = {step.path: at for at, step in enumerate(steps)}
    rows = sorted(steps, key=lambda one: _key(one, order))
    return [(step, "  " * step.path.count("/")) for step in rows]


def _key(step: "Step", order: dict[str, int]) -> list[tuple[int, str]]:
    """Sorts a path part by part, each part by when it began."""
    parts, path = [], ""
    for part in step.path.split("/"):
        path = f"{path}/{part}" if path else part
        outer = path.partition("[")[0] if "[" in part else path
        parts.append((order.get(path, order.get(outer, len(order))), path))
    return parts
