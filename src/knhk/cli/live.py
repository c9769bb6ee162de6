"""A running workflow as it is seen through its receipts: a table and a bar on a terminal, plain lines elsewhere."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from knhk.cli.output import stderr, style_of
from knhk.domain.paths import is_inside
from knhk.domain.times import rfc3339

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_ROWS: Final = 12
_REFRESHES_A_SECOND: Final = 10
_STEP_STATES: Final = {
    "step.started": "running",
    "step.completed": "completed",
    "step.failed": "failed",
    "step.retrying": "retrying",
    "step.skipped": "skipped",
    "step.opened": "running",
    "step.entered": "running",
    "step.caught": "running",
    "step.unwinding": "running",
    "step.compensated": "compensated",
    "timer.set": "waiting",
    "step.waiting": "waiting",
}
_RUN_STATES: Final = {
    "workflow.submitted": "pending",
    "workflow.started": "running",
    "workflow.resumed": "running",
    "workflow.retried": "running",
    "workflow.paused": "paused",
    "workflow.completed": "completed",
    "workflow.failed": "failed",
    "workflow.cancelled": "cancelled",
    "workflow.timed_out": "timed_out",
}


class Tally:
    """What receipts, as JSON, have told so far. Of the steps only the newest few are kept, of the rest the number."""

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        self.name = ""
        self.state = "pending"
        self.steps = 0
        self.completed = 0
        self.newest: OrderedDict[str, tuple[str, int, float | None, str]] = OrderedDict()

    def take(self, receipt: Mapping[str, Any]) -> None:
        """One more receipt."""
        kind, detail, step = receipt["kind"], receipt["detail"], receipt["step"]
        self.state = _RUN_STATES.get(kind, self.state)
        if kind == "workflow.submitted":
            self.name, self.steps = detail.get("name", ""), detail.get("steps", 0)
        if kind == "step.completed" and not is_inside(step):
            self.completed += 1
        if step and kind in _STEP_STATES:
            self.newest[step] = (_STEP_STATES[kind], receipt["attempt"], _seconds(receipt), _why(detail))
            self.newest.move_to_end(step)
            self._forget()

    def _forget(self) -> None:
        """Drop the oldest finished steps, so that those under way stay in sight."""
        for step in [name for name, row in self.newest.items() if row[0] == "completed"]:
            if len(self.newest) <= _ROWS:
                return
            del self.newest[step]


def line_of(receipt: Mapping[str, Any]) -> str:
    """A receipt as a line of text."""
    parts = [rfc3339(receipt["at_ns"]), receipt["kind"]]
    if receipt["step"]:
        parts.append(receipt["step"])
    if receipt["attempt"] > 1:
        parts.append(f"(attempt {receipt['attempt']})")
    seconds, why = _seconds(receipt), _why(receipt["detail"])
    if seconds is not None:
        parts.append(f"{seconds * 1000:.1f} ms")
    return " ".join(parts) + (f": {why}" if why else "")


class Display:
    """Shows receipts as they come."""

    def __init__(self, console: "Console", workflow_id: str) -> None:
        self.tally = Tally(workflow_id)
        self._console = console

    def show(self, receipt: Mapping[str, Any]) -> None:
        """One more receipt."""
        self.tally.take(receipt)
        if not self._console.is_terminal:
            self._console.print(line_of(receipt), markup=False, soft_wrap=True)

    def render(self) -> "RenderableType":
        """The table of steps above the bar."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        tally = self.tally
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("step", "state", "attempt", "ms", ""):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for step, (state, attempt, seconds, why) in list(tally.newest.items())[-_ROWS:]:
            took = "" if seconds is None else f"{seconds * 1000:.1f}"
            table.add_row(Text(step), Text(state, style=style_of(state)), str(attempt or ""), took, Text(why))
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(f"{tally.workflow_id} {tally.name}"),
            ProgressBar(total=max(tally.steps, 1), completed=tally.completed, width=30),
            Text(f"{tally.completed}/{tally.steps}"),
            Text(tally.state, style=style_of(tally.state)),
        )
        return Group(table, bar)


@contextmanager
def display(workflow_id: str) -> Iterator[Display]:
    """A display on stderr, live if that is a terminal."""
    console = stderr()
    shown = Display(console, workflow_id)
    if not console.is_terminal:
        yield shown
        return
    from rich.live import Live

    with Live(console=console, get_renderable=shown.render, refresh_per_second=_REFRESHES_A_SECOND):
        yield shown


def _seconds(receipt: Mapping[str, Any]) -> float | None:
    started = receipt["detail"].get("started_at_ns", 0)
    return (receipt["at_ns"] - started) / 1e9 if started else None


def _why(detail: Mapping[str, Any]) -> str:
    failure = detail.get("failure")
    text = failure.get("message", "") if isinstance(failure, Mapping) else detail.get("reason", "")
    return str(text).partition("\n")[0]
