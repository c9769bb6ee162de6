"""`knhk diagnostics`: where time goes, and what the server is short of."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from knhk.cli.options import SERVER, OutputOption, ServerOption
from knhk.cli.output import Output, emit, note, stdout, style_of
from knhk.cli.trace import OfflineOption, read_timing

if TYPE_CHECKING:
    from knhk.diagnostics.bottlenecks import Bottlenecks
    from knhk.diagnostics.timing import Timing

app = typer.Typer(name="diagnostics", help="Find out what is slow.", no_args_is_help=True, rich_markup_mode=None)

ScanOption = Annotated[int, typer.Option("--scan", min=1, max=1_000_000, help="Look at so many of the newest runs.")]
_SHOWN: Final = 10
_LEAST_SHARE: Final = 0.0005


@app.command("slow-workflows")
def slow_workflows(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Show so many.")] = 10,
    scan: ScanOption = 10_000,
    server: ServerOption = SERVER,
    data: OfflineOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """The workflows that took longest, or have been running longest, and what each spent its time on."""
    import time

    from knhk.cli.bars import share_bar, took
    from knhk.cli.runs import runs_of
    from knhk.diagnostics.bottlenecks import bottlenecks_of, slowest

    found = []
    with runs_of(server, data) as runs:
        for took_ms, row in slowest(runs.rows(scan), limit, time.time_ns()):
            timing = read_timing(*runs.run(row["workflow_id"]))
            found.append({**row, "took_ms": took_ms, "mostly": _worst(bottlenecks_of([timing]))})

    def table() -> None:
        from rich.text import Text

        shown = _table("workflow", "name", "state", ">took", "", "mostly", "of the time")
        longest = max((one["took_ms"] for one in found), default=1.0)
        for one in found:
            mostly = one["mostly"]
            what = "" if mostly is None else f"{mostly['kind']} {mostly['step'] or '(run)'}"
            share = "" if mostly is None else f"{mostly['share']:.0%}"
            shown.add_row(
                Text(one["workflow_id"]),
                Text(one["name"]),
                Text(one["state"], style_of(one["state"])),
                took(one["took_ms"] * 1e6),
                share_bar(one["took_ms"] / longest, 16, "yellow"),
                Text(f"{what} [{mostly['action']}]" if mostly is not None and mostly["action"] else what),
                share,
            )
        stdout().print(shown)
        if found:
            note(f"More of one: knhk trace workflow {found[0]['workflow_id']}")

    emit({"workflows": found, "scanned": scan}, output, table)


@app.command("bottlenecks")
def bottlenecks(
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Look at so many runs.")] = 200,
    name: Annotated[str | None, typer.Option("--name", help="Only workflows of this name.")] = None,
    scan: ScanOption = 10_000,
    server: ServerOption = SERVER,
    data: OfflineOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """What the newest runs spent their time on, and the step and action to blame, from their receipts.

    Every moment of a run belongs to what kept it from ending just then: its critical path.
    """
    from rich.progress import track

    from knhk.cli.bars import plain
    from knhk.cli.output import stderr
    from knhk.cli.runs import runs_of
    from knhk.diagnostics.bottlenecks import bottlenecks_of

    timings: list[Timing] = []
    with runs_of(server, data) as runs:
        wanted = (row["workflow_id"] for row in runs.rows(scan) if name is None or row["name"] == name)
        ids = [one for one, _ in zip(wanted, range(limit), strict=False)]
        console = stderr()
        quiet = not console.is_terminal
        for workflow_id in track(ids, "Reading receipts", console=console, disable=quiet, transient=True):
            timings.append(read_timing(*runs.run(workflow_id)))
    found = bottlenecks_of(timings)
    emit(plain(found) | {"verdict": found.verdict}, output, lambda: _print_bottlenecks(found))


def _worst(found: "Bottlenecks") -> dict[str, Any] | None:
    from knhk.cli.bars import plain

    return dict(plain(found.blames[0])) if found.blames else None


def _print_bottlenecks(found: "Bottlenecks") -> None:
    from rich.text import Text

    from knhk.cli.bars import LOOKS, share_bar, took

    console = stdout()
    per_run = f", {took(found.total_ns / found.runs)} each" if found.runs else ""
    console.print(
        Text(f"{found.runs} runs{per_run}: {found.attempts} attempts, {found.failed_attempts} of them failed")
    )
    console.print()
    kinds = _table("time", "", ">share")
    for kind, share in sorted(found.shares.items(), key=lambda item: -item[1]):
        if share >= _LEAST_SHARE:
            style = LOOKS[kind][1]
            kinds.add_row(Text(kind, style), share_bar(share, 40, style), f"{share:.1%}")
    console.print(kinds)
    console.print()
    blames = _table("workflow", "step", "action", "time", ">runs", ">mean", ">longest", ">share", "")
    for one in found.blames[:_SHOWN]:
        if one.share < _LEAST_SHARE:
            break
        style = LOOKS[one.kind][1]
        blames.add_row(
            Text(one.workflow),
            Text(one.step or "-"),
            Text(one.action or "-", "dim"),
            Text(one.kind, style),
            str(one.runs),
            took(one.total_ns / max(one.runs, 1)),
            took(one.longest_ns),
            f"{one.share:.1%}",
            share_bar(one.share, 12, style),
        )
    console.print(blames)
    console.print()
    console.print(Text(found.verdict, "bold"))


def _table(*columns: str) -> Any:
    """An empty table; a column whose name begins with `>` is aligned to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        right = name.startswith(">")
        table.add_column(
            name.removeprefix(">"), justify="right" if right else "left", no_wrap=True, overflow="ellipsis"
        )
    return table
