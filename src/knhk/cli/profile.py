"""`knhk profile cpu`: where a running server spends its CPU time."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from knhk.cli.options import OPERATIONS, OperationsOption, OutputOption
from knhk.cli.output import Output, emit, note, stdout

if TYPE_CHECKING:
    from knhk.diagnostics.sampler import Profile

app = typer.Typer(name="profile", help="Profile a running server.", no_args_is_help=True, rich_markup_mode=None)
_TOP: Final = 15


class Form(StrEnum):
    """The form of the file that a profile is written to."""

    HTML = "html"
    SPEEDSCOPE = "speedscope"
    COLLAPSED = "collapsed"


_SUFFIXES: Final = {Form.HTML: ".html", Form.SPEEDSCOPE: ".speedscope.json", Form.COLLAPSED: ".folded"}


@app.callback()
def root() -> None:
    """Profile a running server."""


@app.command()
def cpu(
    duration: Annotated[str, typer.Option("--duration", metavar="DURATION", help="How long, such as 30s.")] = "30s",
    file: Annotated[Path | None, typer.Option("--output-file", help="Where to write the flame graph.")] = None,
    form: Annotated[Form, typer.Option("--format", help="Form of that file.")] = Form.HTML,
    operations: OperationsOption = OPERATIONS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Write a flame graph of the running server, and show the functions that cost most.

    The server looks at its own threads a hundred times a second; it costs about one percent of a core.
    """
    import time

    import msgspec

    from knhk.cli.bars import plain
    from knhk.cli.client import Client
    from knhk.cli.waiting import duration_s, waiting
    from knhk.diagnostics.profiles import top_functions
    from knhk.diagnostics.sampler import Profile

    seconds = duration_s(duration, "--duration")
    with Client(operations, "--operations") as client, waiting("Profiling", seconds):
        answer = client.request("POST", "/debug/profile", query={"seconds": str(seconds)}, wait_s=seconds)
    profile = msgspec.convert(answer, Profile)
    path = file or Path(time.strftime(f"knhk-cpu-%Y%m%dT%H%M%S{_SUFFIXES[form]}"))
    _write(path, profile, form, operations)
    top = top_functions(profile, _TOP)
    shown = {"file": str(path), "seconds": profile.seconds, "cpu_seconds": profile.cpu_ns / 1e9, "top": plain(top)}
    emit(shown, output, lambda: _print(profile, top, path))


def _write(path: Path, profile: "Profile", form: Form, operations: str) -> None:
    import msgspec

    from knhk.cli.files import write_bytes
    from knhk.diagnostics import flame_graph, profiles

    title = f"KNHK CPU profile, {operations}"
    match form:
        case Form.HTML:
            raw = flame_graph.html(profile, title, _about(profile))
        case Form.SPEEDSCOPE:
            raw = msgspec.json.encode(profiles.speedscope(profile, title))
        case Form.COLLAPSED:
            raw = profiles.collapsed(profile).encode()
    write_bytes(path, raw)


def _about(profile: "Profile") -> str:
    cores = profile.cpu_ns / 1e9 / max(profile.seconds, 1e-9)
    return f"{profile.seconds:.1f} s, {cores:.2f} cores busy, looked at {profile.looks} times"


def _print(profile: "Profile", top: list[Any], path: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from knhk.cli.bars import share_bar

    console = stdout()
    console.print(Text(_about(profile)))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("own", "total"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("function", no_wrap=True, overflow="ellipsis")
    for one in top:
        function, _, place = one.name.partition(" (")
        shown = Text.assemble((function, "bold"), (f"  {place.removesuffix(')')}", "dim"))
        bar = share_bar(one.self_share, 20, "dark_orange")
        table.add_row(f"{one.self_share:.1%}", f"{one.total_share:.1%}", bar, shown)
    console.print(table)
    note(f"Flame graph: {path}")
