"""`knhk debug`: memory and tasks of a running server."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from knhk.cli.options import OPERATIONS, OperationsOption, OutputOption
from knhk.cli.output import Output, emit, note, print_fields, print_table, stdout

app = typer.Typer(name="debug", help="Look inside a running server.", no_args_is_help=True, rich_markup_mode=None)
_TOP: Final = 20
_FRAMES: Final = 3
_BOOTSTRAP: Final = ("Thread.run ", "Thread._bootstrap")
"""Where every thread begins."""


@app.command("heap-dump")
def heap_dump(
    file: Annotated[Path | None, typer.Option("--output-file", help="Where to write the whole dump, as JSON.")] = None,
    operations: OperationsOption = OPERATIONS,
    output: OutputOption = Output.TABLE,
) -> None:
    """What objects the server holds: by type, and the largest ones. No values, so nothing secret is in it."""
    import json
    import time

    from knhk.cli.bars import share_bar, size
    from knhk.cli.files import write_bytes

    found = _ask(operations, "POST", "/debug/heap")
    path = file or Path(time.strftime("knhk-heap-%Y%m%dT%H%M%S.json"))
    write_bytes(path, json.dumps(found, indent=2).encode())
    whole = sum(one["bytes"] for one in found["types"]) or 1

    def table() -> None:
        _print_memory(found["process"])
        frozen = found["frozen_objects"]
        note(f"Not counted: {frozen:,} objects that have been there since the start, such as modules and functions.")
        rows = [
            (size(one["bytes"]), f"{one['count']:,}", share_bar(one["bytes"] / whole, 16), one["type"])
            for one in found["types"][:_TOP]
        ]
        _print((">size", ">count", "", "type"), rows)
        typer.echo()
        _print((">size", "largest objects"), [(size(one["bytes"]), one["what"]) for one in found["largest"][:10]])
        note(f"All of it: {path}")

    emit(found | {"file": str(path)}, output, table)


@app.command("memory-profile")
def memory_profile(
    duration: Annotated[str, typer.Option("--duration", metavar="DURATION", help="How long, such as 10s.")] = "10s",
    operations: OperationsOption = OPERATIONS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Which lines of code allocate memory that stays. The server is slower while it watches."""
    from knhk.cli.bars import size
    from knhk.cli.waiting import duration_s, waiting
    from knhk.diagnostics.sampler import short_file

    seconds = duration_s(duration, "--duration")
    with waiting("Watching allocations", seconds):
        found = _ask(operations, "POST", "/debug/memory", seconds=seconds)

    def table() -> None:
        grown = found["after"]["resident_bytes"] - found["before"]["resident_bytes"]
        typer.echo(f"in {seconds:g} s the process grew by {size(grown)}, to {size(found['after']['resident_bytes'])}")
        rows = [
            (size(one["grown_bytes"]), f"{one['grown_count']:,}", f"{short_file(one['file'])}:{one['line']}")
            for one in found["lines"][:_TOP]
        ]
        _print((">grown by", ">objects", "line"), rows)

    emit(found, output, table)


@app.command("gc")
def collect(operations: OperationsOption = OPERATIONS, output: OutputOption = Output.TABLE) -> None:
    """Collect garbage now, and give free memory back to the machine. The server stands still for it."""
    from knhk.cli.bars import size

    found = _ask(operations, "POST", "/debug/gc")
    before, after = found["before"]["resident_bytes"], found["after"]["resident_bytes"]
    shown = [
        ("collected", f"{found['collected_objects']:,} objects in {found['took_ms']:.1f} ms"),
        ("memory", f"{size(before)}, now {size(after)}"),
    ]
    emit(found, output, lambda: print_fields(shown))


@app.command("tasks")
def tasks(
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show at most so many tasks.")] = 50,
    operations: OperationsOption = OPERATIONS,
    output: OutputOption = Output.TABLE,
) -> None:
    """What every thread and asyncio task is doing. Answers while the event loop is blocked too."""
    found = _ask(operations, "GET", "/debug/tasks")

    def table() -> None:
        if found["blocked"]:
            note(f"Warning: {found['blocked']}")
        threads = [(one["name"], one["step"] or "", _stack(one["stack"])) for one in found["threads"]]
        print_table(("thread", "step", "doing"), threads, folds=("doing",))
        typer.echo()
        rows = [(one["name"], one["state"], _stack(one["stack"])) for one in found["tasks"][:limit]]
        print_table(("task", "state", "awaiting"), rows, folds=("awaiting", "task"))
        if found["count"] > len(rows):
            note(f"{found['count'] - len(rows)} more tasks: --limit {found['count']}")

    emit(found, output, table)


def _ask(operations: str, method: str, path: str, seconds: float = 0.0) -> dict[str, Any]:
    from knhk.cli.client import Client

    query = {"seconds": str(seconds)} if seconds else {}
    with Client(operations, "--operations") as client:
        return client.request(method, path, query=query, wait_s=seconds)


def _stack(places: Sequence[str]) -> str:
    """The innermost calls of a stack, without the directories of packages."""
    from knhk.diagnostics.sampler import short_file

    shown = []
    for place in [one for one in places if not one.startswith(_BOOTSTRAP)][:_FRAMES]:
        function, _, file = place.removesuffix(")").partition(" (")
        shown.append(f"{function} ({short_file(file)})")
    return " < ".join(shown)


def _print(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    from knhk.cli.diagnostics import table_of

    table = table_of(*columns)
    for row in rows:
        table.add_row(*row)
    stdout().print(table)


def _print_memory(process: dict[str, int]) -> None:
    from knhk.cli.bars import size

    print_fields((name.removesuffix("_bytes").replace("_", " "), size(value)) for name, value in process.items())
    typer.echo()
