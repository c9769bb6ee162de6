"""`knhk top`: a node's throughput, latency, queues and active runs, live."""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from knhk.cli.options import OPERATIONS, SERVER, OperationsOption, OutputOption, ServerOption
from knhk.cli.output import Output, emit, stdout, style_of
from knhk.domain.errors import KnhkError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from knhk.cli.client import Client
    from knhk.diagnostics.vitals import Scrape, Vitals

_RUNS: Final = 12
_SEEN: Final = 200
_ACTIONS: Final = 8
_HISTORY: Final = 60
_SPARKS: Final = "▁▂▃▄▅▆▇█"


def top(
    interval: Annotated[str, typer.Option("--interval", metavar="DURATION", help="Time between two looks.")] = "1s",
    once: Annotated[bool, typer.Option("--once", help="Look once, over one interval, and end.")] = False,
    operations: OperationsOption = OPERATIONS,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Watch a server: throughput, latency, queues, actions and active runs. Ctrl-C ends it.

    With --once or an output for machines it looks once and ends.
    """
    from knhk.cli.client import Client
    from knhk.cli.waiting import duration_s
    from knhk.diagnostics.vitals import plain

    seconds = max(duration_s(interval, "--interval"), 0.1)
    with Client(operations, "--operations") as node, Client(server) as api:
        screen = _Screen(node, api, operations)
        console = stdout()
        if once or output is not Output.TABLE or not console.is_terminal:
            screen.look()
            time.sleep(seconds)
            screen.look()
            shown = plain(screen.vitals) if screen.vitals is not None else {}
            emit(shown | {"runs": screen.runs}, output, lambda: console.print(screen.render()))
            return
        from rich.live import Live

        with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                screen.look()
                live.update(screen.render(), refresh=True)
                time.sleep(seconds)


class _Screen:
    """What is shown, with what was seen before."""

    def __init__(self, node: "Client", api: "Client", address: str) -> None:
        self._node, self._api, self._address = node, api, address
        self._last: Scrape | None = None
        self._rates: deque[float] = deque(maxlen=_HISTORY)
        self._latencies: deque[float] = deque(maxlen=_HISTORY)
        self.vitals: Vitals | None = None
        self.runs: list[dict[str, Any]] = []
        self._trouble = ""

    def look(self) -> None:
        """Scrape once more. A server that is gone for a while is said, and looked for again."""
        from knhk.diagnostics.vitals import Scrape, between

        try:
            now = Scrape.of(self._node.text("/metrics"), time.monotonic())
            self.runs = self._api.request("GET", "/workflows", query={"state": "running", "limit": _SEEN})["workflows"]
        except KnhkError as error:
            if self._last is None:
                raise
            self._trouble = error.message
            return
        self._trouble = ""
        if self._last is not None:
            self.vitals = between(self._last, now)
            self._rates.append(self.vitals.completed_per_s + self.vitals.failed_per_s)
            self._latencies.append(self.vitals.latency.p99_s or 0.0)
        self._last = now

    def render(self) -> "RenderableType":
        """The screen."""
        from rich.console import Group
        from rich.text import Text

        vitals = self.vitals
        head = Text.assemble(("knhk top", "bold"), f"  {self._address}  {time.strftime('%H:%M:%S')}  ")
        if self._trouble:
            return Group(head, Text(f"no answer: {self._trouble}", "red"))
        if vitals is None:
            return Group(head, Text("the first look", "dim"))
        status = ("ready", "green") if vitals.ready else ("not ready", "bold red")
        head.append(*status).append("".join(f"  {check}!" for check in vitals.wrong), "yellow")
        if vitals.blocked_s:
            head.append(f"  event loop blocked for {vitals.blocked_s:.0f} s", "bold red")
        parts: list[RenderableType] = [head, Text(), self._flow(vitals), Text(), _uses(vitals), Text()]
        if vitals.actions:
            parts += [_actions(vitals), Text()]
        parts.append(_runs(self.runs))
        return Group(*parts)

    def _flow(self, vitals: "Vitals") -> Any:
        from rich.text import Text

        from knhk.cli.bars import took
        from knhk.cli.diagnostics import table_of

        latency = vitals.latency
        table = table_of("", "", "")
        done = f"{vitals.completed_per_s:,.1f}/s done, {vitals.submitted_per_s:,.1f}/s submitted"
        bad = "".join(
            f", {rate:,.1f}/s {word}"
            for rate, word in ((vitals.failed_per_s, "failed"), (vitals.refused_per_s, "refused"))
            if rate
        )
        table.add_row("workflows", Text.assemble(done, (bad, "red")), Text(sparks(self._rates), "green"))
        shown = [
            f"{name} {took(value * 1e9)}"
            for name, value in (("p50", latency.p50_s), ("p90", latency.p90_s), ("p99", latency.p99_s))
            if value is not None
        ]
        table.add_row("latency", ", ".join(shown) or "-", Text(sparks(self._latencies), "yellow"))
        mean = "" if vitals.commit_mean_s is None else f", {took(vitals.commit_mean_s * 1e9)} each"
        commits = f"{vitals.commits_per_s:,.1f}/s{mean}, {vitals.receipts_per_s:,.0f} receipts/s"
        table.add_row("commits", commits, "")
        return table


def sparks(values: Sequence[float] | deque[float]) -> str:
    """A line of little columns, the highest as high as the greatest value."""
    most = max(values, default=0.0)
    if most <= 0:
        return _SPARKS[0] * len(values)
    return "".join(_SPARKS[min(len(_SPARKS) - 1, int(value / most * len(_SPARKS)))] for value in values)


def _uses(vitals: "Vitals") -> Any:
    from knhk.cli.bars import share_bar, size
    from knhk.cli.diagnostics import table_of

    table = table_of("", "", "", "", "", "")
    cpu = vitals.cpu_cores / max(vitals.cpu_cores_limit, 1e-9)
    memory = vitals.resident_bytes / max(vitals.memory_limit_bytes, 1)
    table.add_row(
        *("CPU", share_bar(cpu, 20, "cyan"), f"{vitals.cpu_cores:.2f} of {vitals.cpu_cores_limit:.0f} cores"),
        *("running", f"{vitals.active:,}", f"{vitals.queued:,} wait for a slot"),
    )
    table.add_row(
        *("memory", share_bar(memory, 20, "cyan"), f"{size(vitals.resident_bytes)}, {memory:.0%}"),
        *("steps", f"{vitals.steps_running:,}", f"{vitals.steps_waiting:,} wait for a place"),
    )
    return table


def _actions(vitals: "Vitals") -> Any:
    from rich.text import Text

    from knhk.cli.bars import share_bar, took
    from knhk.cli.diagnostics import table_of

    table = table_of("action", ">attempts/s", ">mean", ">at once", "")
    most = max(one.busy for one in vitals.actions) or 1.0
    for one in vitals.actions[:_ACTIONS]:
        bar = share_bar(one.busy / most, 16, "green")
        table.add_row(Text(one.action), f"{one.per_s:,.1f}", took(one.mean_s * 1e9), f"{one.busy:.2f}", bar)
    return table


def _runs(runs: list[dict[str, Any]]) -> Any:
    from datetime import UTC, datetime

    from rich.text import Text

    from knhk.cli.bars import share_bar, took
    from knhk.cli.diagnostics import table_of

    table = table_of("longest active run", "name", "state", ">for", "steps", "")
    now_s = datetime.now(UTC).timestamp()
    for row in runs[: -_RUNS - 1 : -1]:  # they come newest first
        age_s = now_s - datetime.fromisoformat(row["submitted_at"]).timestamp() if row["submitted_at"] else 0.0
        share = row["steps_completed"] / max(row["steps_total"], 1)
        table.add_row(
            Text(row["workflow_id"]),
            Text(row["name"]),
            Text(row["state"], style_of(row["state"])),
            took(max(age_s, 0.0) * 1e9),
            f"{row['steps_completed']}/{row['steps_total']}",
            share_bar(share, 12, "green"),
        )
    if not runs:
        table.add_row(Text("none", "dim"))
    return table
