"""`knhk diagnostics`: where time goes, and what the server is short of."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from knhk.cli import exit_codes
from knhk.cli.options import OPERATIONS, SERVER, OperationsOption, OutputOption, ServerOption
from knhk.cli.output import Output, emit, note, stdout, style_of
from knhk.cli.trace import OfflineOption, read_timing

if TYPE_CHECKING:
    from knhk.diagnostics.bottlenecks import Bottlenecks
    from knhk.diagnostics.timing import Timing

app = typer.Typer(name="diagnostics", help="Find out what is slow.", no_args_is_help=True, rich_markup_mode=None)

ScanOption = Annotated[int, typer.Option("--scan", min=1, max=1_000_000, help="Look at so many of the newest runs.")]
_SHOWN: Final = 10
_LEAST_SHARE: Final = 0.0005


@app.command("resources")
def resources(
    operations: OperationsOption = OPERATIONS,
    output: OutputOption = Output.TABLE,
) -> None:
    """What the server has and uses, and what it is running short of. Exits 1 if something is critical."""
    from knhk.cli.client import Client

    with Client(operations, "--operations") as client:
        found = client.request("GET", "/debug/resources")
    emit(found, output, lambda: _print_resources(found))
    if any(one["level"] == "critical" for one in found["findings"]):
        raise typer.Exit(exit_codes.FAILED)


@app.command("slow-workflows")
def slow_workflows(
    context: typer.Context,
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
    with runs_of(server, context, data) as runs:
        for took_ms, row in slowest(runs.rows(scan), limit, time.time_ns()):
            timing = read_timing(*runs.run(row["workflow_id"]))
            found.append({**row, "took_ms": took_ms, "mostly": _worst(bottlenecks_of([timing]))})

    def table() -> None:
        from rich.text import Text

        shown = table_of("workflow", "name", "state", ">took", "", "mostly", "of the time")
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
    context: typer.Context,
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
    with runs_of(server, context, data) as runs:
        wanted = (row["workflow_id"] for row in runs.rows(scan) if name is None or row["name"] == name)
        ids = [one for one, _ in zip(wanted, range(limit), strict=False)]
        console = stderr()
        quiet = not console.is_terminal
        for workflow_id in track(ids, "Reading receipts", console=console, disable=quiet, transient=True):
            timings.append(read_timing(*runs.run(workflow_id)))
    found = bottlenecks_of(timings)
    emit(plain(found) | {"verdict": found.verdict}, output, lambda: _print_bottlenecks(found))


def _print_resources(found: dict[str, Any]) -> None:
    from rich.text import Text

    from knhk.cli.bars import size, took

    process, engine, machine = found["process"], found["engine"], found["process"]["machine"]
    console = stdout()
    console.print(Text.assemble((found["node_id"], "bold"), f"  knhk {found['version']}  process {process['pid']}"))
    console.print()
    uses = table_of("", "", ">used", ">of", "")
    _use(uses, "CPU", process["cpu_cores_used"], process["cpu_cores"], lambda one: f"{one:.2f}", "cores")
    _use(uses, "memory", process["resident_bytes"], process["memory_limit_bytes"], size)
    for disk in found["disks"]:
        used = disk["total_bytes"] - disk["free_bytes"]
        _use(uses, "disk", used, disk["total_bytes"], size, disk["path"])
    _use(uses, "open files", process["open_files"], process["open_files_limit"], _count)
    _use(uses, "workflow slots", engine["active"], engine["max_active"], _count)
    _use(uses, "queue", engine["queued"], engine["max_queued"], _count)
    waiting = f"{engine['steps_waiting']:,} wait" if engine["steps_waiting"] else ""
    _use(uses, "steps", engine["steps_running"], engine["max_steps_running"], _count, waiting)
    console.print(uses)
    console.print()
    facts = table_of("", "")
    facts.add_row("commits", f"{engine['commits']:,}, {took(engine['commit_mean_s'] * 1e9)} each")
    facts.add_row("event loop", f"at most {took(engine['loop_lag_s'] * 1e9)} late in the last 30 s")
    facts.add_row("lists, metrics", f"{engine['projection_lag_blocks']} blocks behind")
    facts.add_row("threads", str(process["threads"]))
    load = ", ".join(f"{one:g}" for one in machine["load_average"])
    facts.add_row(
        "machine", f"CPU {machine['cpu_percent']:.0f}%, load {load}, {size(machine['memory_available_bytes'])} free"
    )
    console.print(facts)
    console.print()
    for one in found["findings"]:
        style = "red" if one["level"] == "critical" else "yellow"
        console.print(Text.assemble((one["what"], f"bold {style}"), f"\n  {one['advice']}"))
    if not found["findings"]:
        console.print(Text("Nothing is running short.", "green"))


def _use(table: Any, what: str, used: float, most: float, shown: Any, remark: str = "") -> None:
    from rich.text import Text

    from knhk.cli.bars import share_bar

    share = used / most if most else 0.0
    style = "red" if share >= 0.95 else "yellow" if share >= 0.8 else "green"
    table.add_row(what, share_bar(share, 24, style), shown(used), shown(most), Text(remark, "dim"))


def _count(number: float) -> str:
    return f"{number:,.0f}"


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
    kinds = table_of("time", "", ">share")
    for kind, share in sorted(found.shares.items(), key=lambda item: -item[1]):
        if share >= _LEAST_SHARE:
            style = LOOKS[kind][1]
            kinds.add_row(Text(kind, style), share_bar(share, 40, style), f"{share:.1%}")
    console.print(kinds)
    console.print()
    blames = table_of("workflow", "step", "action", "time", ">runs", ">mean", ">longest", ">share", "")
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


def table_of(*columns: str) -> Any:
    """An empty table; a column whose name begins with `>` is aligned to the right."""
    from rich.table import Table

    named = any(columns)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=named)
    for name in columns:
        right = name.startswith(">")
        table.add_column(
            name.removeprefix(">"), justify="right" if right else "left", no_wrap=True, overflow="ellipsis"
        )
    return table
