"""`knhk scaling`: how many replicas there are and ought to be, and why. Any node of a cluster will do."""

from typing import Any

import typer

from knhk.cli.options import SERVER, OutputOption, ServerOption
from knhk.cli.output import Output, emit, note, print_fields, print_table
from knhk.cli.workflow import connect

app = typer.Typer(name="scaling", help="How many replicas run, and why.", no_args_is_help=True, rich_markup_mode=None)
_DECISION = ("at", "before", "after", "outcome", "driver", "reason", "problem", "record")
_SIGNAL = ("signal", "value", "target", "asks_for", "why")
_LOAD = ("replica", "cpu", "memory", "runs", "steps", "wait_s", "cores")
_SCHEDULE = ("definition", "fires_in_10m", "fired_in_10m", "mean_s")


@app.command()
def status(server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """The number of replicas, what is being done about it, and the last decisions."""
    with connect(server) as client:
        shown = client.request("GET", "/scaling")

    def table() -> None:
        _fields(shown)
        if shown["decisions"]:
            print_table(_DECISION, _rows(_DECISION, shown["decisions"]), folds=("reason", "problem"))

    emit(shown, output, table)


@app.command()
def explain(server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """Why there are so many replicas: every signal with its target, the load of each replica, what is expected."""
    with connect(server) as client:
        shown = client.request("GET", "/scaling/explain")

    def table() -> None:
        _fields(shown)
        if shown["signals"]:
            print_table(_SIGNAL, _rows(_SIGNAL, shown["signals"]), folds=("why",))
            print_table(_LOAD, _rows(_LOAD, shown["loads"]))
            note(shown["rule"])
        if shown["schedules"]:
            print_table(_SCHEDULE, _rows(_SCHEDULE, shown["schedules"]))
        for text in shown["unknown"]:
            note(f"Not known: {text}")

    emit(shown, output, table)


def _fields(shown: dict[str, Any]) -> None:
    replicas, under_way = shown["replicas"], shown["carrying_out"]
    print_fields(
        [
            ("replicas", replicas["current"]),
            ("wanted", replicas["wanted"]),
            ("limits", f"{replicas['min']} to {replicas['max']}"),
            ("driver", shown["driver"]),
            ("reason", shown["reason"]),
            ("looked at", shown["looked_at"]),
            ("increase from", shown["increase_from"]),
            ("decrease from", shown["decrease_from"]),
            ("waits for", under_way["waits_for"] if under_way else None),
            ("trouble", shown["trouble"]),
        ]
    )


def _rows(columns: tuple[str, ...], found: list[dict[str, Any]]) -> list[list[Any]]:
    return [[_number(row[name]) for name in columns] for row in found]


def _number(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
