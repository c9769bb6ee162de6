"""`knhk keys`: the keys that encrypt data at rest, of a running server."""

import json
from typing import Annotated, Any

import typer

from knhk.cli.client import Client
from knhk.cli.options import SERVER, OutputOption, ServerOption
from knhk.cli.output import Output, emit, print_fields, print_table

app = typer.Typer(name="keys", help="The keys that encrypt data at rest.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_keys(server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """The generations of data keys."""
    shown = _ask("GET", "/keys", server)
    columns = ("generation", "state", "created_at", "tree_nodes")
    rows = [[row[column] for column in columns] for row in shown["generations"]]
    emit(shown, output, lambda: print_table(columns, rows))


@app.command()
def status(server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """Whether data are encrypted, and how far re-encryption is."""
    shown = _ask("GET", "/keys", server)
    emit(shown, output, lambda: _print_status(shown))


@app.command()
def rotate(
    key_encryption_key: Annotated[
        bool, typer.Option("--key-encryption-key", help="Rotate the key that wraps the key ring, not the data keys.")
    ] = False,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Encrypt with new keys from now on.

    What is stored is re-encrypted in the background; `knhk keys status` says how far that is. Old keys are kept for
    backups until they are destroyed.
    """
    what = "key_encryption_key" if key_encryption_key else "data"
    shown = _ask("POST", "/keys/rotate", server, {"what": what})
    emit(shown, output, lambda: _print_status(shown))


@app.command()
def destroy(
    generation: Annotated[int, typer.Argument(help="A retired generation, as `knhk keys list` shows it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Destroy retired keys for good.

    Backups and archives whose data are encrypted with them can never be read again.
    """
    if not yes:
        typer.confirm(f"Destroy generation {generation}? Backups that need it are lost.", abort=True, err=True)
    shown = _ask("DELETE", f"/keys/{generation}", server)
    emit(shown, output, lambda: _print_status(shown))


def _ask(method: str, path: str, server: str, body: dict[str, str] | None = None) -> dict[str, Any]:
    raw = None if body is None else json.dumps(body).encode()
    headers = {} if raw is None else {"Content-Type": "application/json"}
    with Client(server) as client:
        return client.request(method, path, body=raw, headers=headers)


def _print_status(shown: dict[str, Any]) -> None:
    rewriting = shown.get("reencryption", {})
    print_fields(
        [
            ("encryption", shown["encryption"]),
            ("key-encryption key", shown["key_encryption_key"]),
            (
                "generation in use",
                next((one["generation"] for one in shown["generations"] if one["state"] == "active"), None),
            ),
            ("re-encryption", rewriting.get("state")),
            ("percent", rewriting.get("percent")),
            ("rows re-encrypted", rewriting.get("rows_rewritten")),
            ("rows damaged", rewriting.get("rows_damaged") or None),
            ("still in clear or older", rewriting.get("still_in_clear_or_older")),
            ("erasures pending", shown.get("erasures_pending") or None),
        ]
    )
