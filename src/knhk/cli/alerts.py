"""`knhk alerts` and `knhk sla`: what fires, who is told, and how well the service level is kept."""

from typing import Annotated, Any

import typer

from knhk.cli.options import OPERATIONS, OperationsOption, OutputOption
from knhk.cli.output import Output, emit, note, print_table

app = typer.Typer(name="alerts", help="Alerts: list, test, silence.", no_args_is_help=True, rich_markup_mode=None)
sla_app = typer.Typer(name="sla", help="The service level.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_alerts(operations: OperationsOption = OPERATIONS, output: OutputOption = Output.TABLE) -> None:
    """What fires, what is over, silences and channels."""
    found = _request(operations, "GET", "/alerts")

    def table() -> None:
        print_table(("alert", "severity", "state", "since", "summary", "told"), _rows(found), folds=("summary", "told"))
        for silence in found["silences"]:
            until, comment = _time(silence["until_ns"]), silence["comment"]
            note(f"Silenced until {until}: {silence['pattern']} ({silence['id']}){': ' if comment else ''}{comment}")
        if not found["channels"]:
            note("No channel is configured (monitoring.alert_channels): nobody is told.")

    emit(found, output, table)


def _rows(found: dict[str, Any]) -> list[list[str]]:
    return [
        [one["name"], one["severity"], one["state"], _time(one["started_at_ns"]), one["summary"], _told(one["told"])]
        for one in (*found["firing"], *found["resolved"])
    ]


def _told(told: dict[str, Any]) -> str:
    return ", ".join(f"{channel}: {one['error']}" if one["error"] else channel for channel, one in told.items())


@app.command("test")
def send_test(
    channel: Annotated[str, typer.Argument(metavar="[CHANNEL]", help="A channel's name; by default all.")] = "",
    operations: OperationsOption = OPERATIONS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send a test alert, and its end, to a channel or to all. Leaves with 1 if one did not take it."""
    found = _request(operations, "POST", "/alerts/test", {"channel": channel})["channels"]
    emit(found, output, lambda: print_table(("channel", "answer"), list(found.items()), folds=("answer",)))
    if any(answer != "ok" for answer in found.values()):
        raise typer.Exit(1)


@app.command()
def silence(
    pattern: Annotated[str, typer.Argument(help="Names of alerts; * stands for anything, as in 'slo.*'.")],
    for_: Annotated[str, typer.Option("--for", help="How long, such as 2h.")] = "1h",
    comment: Annotated[str, typer.Option("--comment", help="Why.")] = "",
    operations: OperationsOption = OPERATIONS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell nobody of some alerts for a while. What still fires afterwards is told then."""
    import getpass

    body = {"pattern": pattern, "for": for_, "comment": comment, "actor": getpass.getuser()}
    found = _request(operations, "POST", "/alerts/silences", body)
    row = (found["id"], found["pattern"], _time(found["until_ns"]))
    emit(found, output, lambda: print_table(("silence", "pattern", "until"), [row]))


@app.command()
def unsilence(
    silence_id: Annotated[str, typer.Argument(metavar="SILENCE", help="The id that `knhk alerts silence` gave.")],
    operations: OperationsOption = OPERATIONS,
) -> None:
    """End a silence."""
    _request(operations, "DELETE", f"/alerts/silences/{silence_id}")
    note(f"{silence_id} is over.")


@sla_app.command("status")
def sla_status(operations: OperationsOption = OPERATIONS, output: OutputOption = Output.TABLE) -> None:
    """Uptime, latency and errors over rolling windows, error budgets and burn rates. Leaves with 1 if one is missed."""
    found = _request(operations, "GET", "/sla")

    def table() -> None:
        columns = ("window", "uptime %", "workflows", "errors %", "p50 s", "p99 s")
        rows = [
            (
                window,
                f"{one['uptime_percent']:.4f}",
                str(one["workflows"]),
                f"{one['error_percent']:.4f}",
                _seconds(one["p50_s"]),
                _seconds(one["p99_s"]),
            )
            for window, one in found["windows"].items()
        ]
        print_table(columns, rows)
        objectives = [
            (
                one["name"],
                f"{one['target_percent']:g}",
                "yes" if one["met"] else "NO",
                f"{one['budget_left_percent']:.2f}",
            )
            for one in found["objectives"]
        ]
        print_table(("objective", "target %", "met", "budget left %"), objectives)

    emit(found, output, table)
    if not all(one["met"] for one in found["objectives"]):
        raise typer.Exit(1)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _time(at_ns: int) -> str:
    from knhk.domain.times import rfc3339

    return rfc3339(at_ns)


def _request(operations: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    import msgspec

    from knhk.cli.client import Client

    with Client(operations, "--operations") as client:
        return client.request(method, path, body=None if body is None else msgspec.json.encode(body))
