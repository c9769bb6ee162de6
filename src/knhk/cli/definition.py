"""`knhk definition`: register workflows on a server, so that they can be run by name, over HTTP."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from knhk.cli.files import read_bytes
from knhk.cli.options import SERVER, OutputOption, ReasonOption, ServerOption
from knhk.cli.output import Output, emit, note, print_fields, print_table
from knhk.cli.workflow import connect
from knhk.domain.errors import InvalidParameter

app = typer.Typer(
    name="definition",
    help="Register workflows on a server, to run them by name and version.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name of a definition.")]
_COLUMNS = ("version", "label", "put_at", "put_by", "note", "digest")


def _path(name: str, *rest: str) -> str:
    return "/".join(["/definitions", *[quote(one, safe="") for one in (name, *rest)]])


@app.command()
def put(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The descriptor, YAML or JSON; - for stdin.")],
    label: Annotated[str, typer.Option("--label", help="A second name for the version, such as 1.4.0.")] = "",
    about: Annotated[str, typer.Option("--note", help="What is new; kept in the receipt.")] = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Register a descriptor as the next version of its name.

    The very text of a version that there is gives that version again: putting it twice is safe.
    """
    text = read_bytes(file)
    query = {"label": label or None, "note": about or None}
    headers = {"Content-Type": "application/yaml"}
    with connect(server) as client:
        shown = client.request("PUT", _path(_name_in(text)), query=query, body=text, headers=headers)
    emit(shown, output, lambda: print_fields(shown.items()))


def _name_in(text: bytes) -> str:
    """The name that a descriptor gives itself. Raises InvalidDescriptor or InvalidParameter."""
    from knhk.domain.definition import check_name
    from knhk.domain.document import read

    value = read(text, max_bytes=len(text)).value
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        raise InvalidParameter("the descriptor has no metadata.name", hint="Check it: `knhk workflow validate FILE`.")
    return check_name(name)


@app.command("list")
def list_definitions(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many.")] = 100,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Go on where an earlier list ended.")] = None,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Definitions by name, each with its newest version."""
    with connect(server) as client:
        page = client.request("GET", "/definitions", query={"limit": limit, "cursor": cursor})

    def table() -> None:
        columns = ("name", "version", "label", "department", "put_at", "retired")
        print_table(columns, [[row[column] for column in columns] for row in page["definitions"]], folds=("name",))
        if page["next_cursor"] is not None:
            note(f"There are more: --cursor {page['next_cursor']}")

    emit(page, output, table)


@app.command()
def show(
    name: NameArgument,
    version: Annotated[
        str | None, typer.Option("--version", help="The text of this one: number, label, digest or `latest`.")
    ] = None,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """The versions of a definition or, with --version, the text of one."""
    path = _path(name) if version is None else _path(name, "versions", version)
    with connect(server) as client:
        shown = client.request("GET", path)

    def table() -> None:
        if version is not None:
            note(f"{name} version {shown['version']}, put {shown['put_at']} by {shown['put_by']}")
            typer.echo(shown["descriptor"], nl=False)
            return
        print_fields([("name", shown["name"]), ("retired", shown["retired"]), ("record", shown["record"])])
        rows = [[_short(column, one[column]) for column in _COLUMNS] for one in shown["versions"]]
        print_table(_COLUMNS, rows, folds=("note",))
        if shown["triggers"]:
            columns = ("trigger", "fires", "next", "trouble")
            print_table(columns, [_trigger(one) for one in shown["triggers"]], folds=("next", "trouble"))

    emit(shown, output, table)


def _trigger(shown: dict[str, Any]) -> tuple[Any, ...]:
    if "cron" in shown:
        fires = f"cron {shown['cron']} {shown['timezone']}"
    else:
        fires = f"event {shown['event']}" if "event" in shown else f"webhook, signed with {shown['webhook']}"
    return shown["name"], fires, ", ".join(shown.get("next", [])), shown["trouble"]


def _short(column: str, value: Any) -> Any:
    return value[:12] if column == "digest" else value


@app.command()
def diff(
    name: NameArgument,
    before: Annotated[str, typer.Argument(metavar="FROM", help="The older version: number, label or digest.")],
    after: Annotated[str, typer.Argument(metavar="[TO]", help="The newer one; else the newest.")] = "latest",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """What changed between two versions of a definition."""
    with connect(server) as client:
        shown = client.request("GET", _path(name, "diff"), query={"from": before, "to": after})

    def table() -> None:
        typer.echo(shown["diff"] or "The texts are the same.")
        for what, steps in shown["steps"].items():
            if steps:
                note(f"steps {what}: {', '.join(steps)}")

    emit(shown, output, table)


@app.command()
def retire(
    name: NameArgument,
    reason: ReasonOption = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let nothing start from a definition any more.

    Runs go on, its versions can still be read, and putting a version brings it back.
    """
    with connect(server) as client:
        shown = client.request("DELETE", _path(name), query={"reason": reason or None})
    emit(shown, output, lambda: print_fields([("name", shown["name"]), ("retired", shown["retired"])]))
