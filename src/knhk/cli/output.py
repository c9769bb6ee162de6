"""How commands answer: data on stdout as a table, JSON or YAML; errors and progress on stderr."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import typer

from knhk.domain.errors import KnhkError

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_WITHOUT_TERMINAL: Final = 200
_STYLES: Final = {
    "completed": "green",
    "running": "cyan",
    "retrying": "yellow",
    "waiting": "yellow",
    "paused": "yellow",
    "failed": "red",
    "timed_out": "red",
    "cancelled": "magenta",
    "skipped": "dim",
    "compensated": "magenta",
}


class Output(StrEnum):
    """The form of what a command writes to stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def emit(data: Any, output: Output, table: Callable[[], None]) -> None:
    """Write JSON-like data in the form that was asked for; `table` prints it for people."""
    match output:
        case Output.JSON:
            sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        case Output.YAML:
            import yaml

            dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
            yaml.dump(data, sys.stdout, Dumper=dumper, sort_keys=False, allow_unicode=True)
        case Output.TABLE:
            table()


def stdout() -> "Console":
    """Where tables are printed. Without a terminal, lines are long rather than cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL, highlight=False, emoji=False)


def stderr() -> "Console":
    """Where progress is shown."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, folds: Sequence[str] = ()) -> None:
    """A table of cells; None is shown as `-`, states in colour. The columns in `folds` wrap when space is short."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name not in folds)
    for row in rows:
        table.add_row(*[Text(cell(one), style=style_of(one)) for one in row])
    stdout().print(table)


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one pair a line; pairs without a value are left out."""
    shown = [(name, value) for name, value in fields if value not in (None, "", {}, [])]
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in shown:
        table.add_row(name, Text(cell(value), style=style_of(value)))
    stdout().print(table)


def cell(value: Any) -> str:
    """A value in a table."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case str():
            return value
        case _:
            return json.dumps(value, ensure_ascii=False)


def style_of(value: Any) -> str:
    """The colour of a state; none for other values."""
    return _STYLES.get(value, "") if isinstance(value, str) else ""


def note(message: str) -> None:
    """Tell the person something that is not the result."""
    typer.echo(message, err=True)


def print_error(error: KnhkError) -> None:
    """Title, message, everything that is wrong, what to do next, and the code."""
    problems, message = error.problems, error.message
    if problems and message.startswith(str(problems[0])):  # the message is made of what follows
        message = f"{len(problems)} problems"
        if len(problems) == 1:
            problems, message = (), error.message
    typer.echo(f"{typer.style(f'Error: {error.title}', fg='red', bold=True)}: {message}", err=True)
    for problem in problems:
        typer.echo(f"  {problem}", err=True)
    if error.advice:
        typer.echo(f"Hint: {error.advice}", err=True)
    typer.echo(f"Code: {error.code}", err=True)
