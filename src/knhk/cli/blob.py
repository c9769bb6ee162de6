"""`knhk blob`: large payloads on a server, sent before the workflow that refers to them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knhk.cli.options import SERVER, OutputOption, ServerOption
from knhk.cli.output import Output, emit, print_fields

if TYPE_CHECKING:
    from knhk.sdk.client import Client

app = typer.Typer(
    name="blob",
    help="Large payloads on a server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BlobArgument = Annotated[str, typer.Argument(metavar="DIGEST", help="sha256:..., as the reference has it.")]


@app.command()
def put(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file.")],
    media_type: Annotated[str, typer.Option("--media-type", help="By default guessed from the name.")] = "",
    server: ServerOption = SERVER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send a file, unless the server has it already, and print the reference for the inputs of a workflow."""
    with _client(server) as client:
        found = client.blobs.put(file, media_type or None).to_dict()
    emit(found, output, lambda: print_fields(found.items()))


@app.command()
def get(
    digest: BlobArgument,
    target: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="The file; else stdout.")] = None,
    server: ServerOption = SERVER,
) -> None:
    """Read a blob; what comes is compared with the digest."""
    with _client(server) as client:
        if target is not None:
            client.blobs.save(digest, target)
        else:
            _to_stdout(client.blobs.read(digest))


@app.command()
def show(digest: BlobArgument, server: ServerOption = SERVER, output: OutputOption = Output.TABLE) -> None:
    """Whether there is a blob, and how large it is."""
    with _client(server) as client:
        found: dict[str, Any] = {"$blob": digest, "size": client.blobs.size(digest)}
    emit(found, output, lambda: print_fields(found.items()))


def _client(server: str) -> "Client":
    from knhk.sdk.client import Client

    return Client(server)


def _to_stdout(pieces: Iterator[bytes]) -> None:
    import sys

    for piece in pieces:
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
