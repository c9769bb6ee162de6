"""`knhk archive`: workflows that were pruned, from where they were archived. Needs no server."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knhk.cli import exit_codes
from knhk.cli.files import read_public_key
from knhk.cli.options import ConfigOption, DataOption, IdArgument, OutputOption, PublicKeyOption
from knhk.cli.output import Output, emit, print_table
from knhk.cli.store import DataDirectory, cipher_of, data_directory
from knhk.cli.verdict import print_report
from knhk.domain.errors import InvalidInput, WorkflowNotFound

if TYPE_CHECKING:
    from knhk.bootstrap.protection import ArchivePlace
    from knhk.protection.archive import Archive, ArchiveReader
    from knhk.protection.blob_archive import ArchivedBlobs

app = typer.Typer(
    name="archive", help="Workflows that were pruned and archived.", no_args_is_help=True, rich_markup_mode=None
)
ArchiveOption = Annotated[
    str | None, typer.Option("--archive", metavar="PLACE", help="Directory or URL; by default persistence.archive.")
]


@app.command("list")
def list_archives(
    context: typer.Context,
    archive: ArchiveOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """The archives, and how many workflows each has."""
    place = _place(data_directory(context, None, config), archive)
    rows = [{"file": name, **_decoded(place, name).record().shown()} for name in place.names()]
    columns = ("file", "at", "ended_before", "workflows", "receipts")
    emit({"archives": rows}, output, lambda: print_table(columns, [[row[name] for name in columns] for row in rows]))


@app.command()
def show(
    context: typer.Context,
    workflow_id: IdArgument,
    archive: ArchiveOption = None,
    data: DataOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """A workflow's receipts, inputs and outputs from its archive."""
    from knhk.cli.live import line_of
    from knhk.domain import payload
    from knhk.domain.blob import digests_in
    from knhk.domain.identifier import parse
    from knhk.engine.loader import decode_receipts

    directory, number = data_directory(context, data, config), parse(workflow_id)
    name, reader = _with(directory, archive, number)
    receipts = decode_receipts(reader.runs()[number], number)
    values = [
        {"seq": seq, "kind": "output" if slot else "input", "value": payload.decode(raw)}
        for (seq, slot), raw in sorted(reader.payloads(number).items())
        if slot >= 0
    ]

    def table() -> None:
        for receipt in receipts:
            typer.echo(line_of(receipt))
        print_table(("seq", "kind", "value"), [list(one.values()) for one in values], folds=("value",))

        if blobs:
            print_table(("blob", "archived"), [[one["digest"], "yes" if one["archived"] else "no"] for one in blobs])

    raws = [raw for (_, slot), raw in reader.payloads(number).items() if slot >= 0]
    archived = _blobs(directory, archive)
    blobs = [
        {"digest": digest, "archived": archived.has(digest)}
        for digest in dict.fromkeys(digest for raw in raws for digest in digests_in(raw))
    ]
    shown: dict[str, Any] = {"workflow_id": workflow_id, "archive": name, "receipts": receipts, "payloads": values}
    emit({**shown, "blobs": blobs}, output, table)


@app.command()
def blob(
    context: typer.Context,
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="sha256:..., as the reference has it.")],
    target: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where to write it.")],
    archive: ArchiveOption = None,
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Bring a blob back from the archive; what comes is compared with the digest."""
    from knhk.actions.blob_access import save

    with _blobs(data_directory(context, data, config), archive).area_with(digest) as area:
        save(area.pieces(digest), target)


@app.command()
def verify(
    context: typer.Context,
    archive: ArchiveOption = None,
    public_key: PublicKeyOption = None,
    data: DataOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Verify all archives: signatures, receipts, inputs, outputs, descriptors and blobs. Exits 1 if anything is wrong.

    Without --public-key, the keys that stand in the archives themselves are trusted.
    """
    from knhk.persistence.verification import Report, Trust
    from knhk.protection.archive import ArchiveReader, verify_archive
    from knhk.security.signing import verify as check

    directory = data_directory(context, data, config)
    place, cipher, total = _place(directory, archive), cipher_of(directory), Report()
    pinned = [read_public_key(path) for path in public_key or []]
    for name in place.names():
        found = _decoded(place, name)
        trust = Trust.of(pinned or found.keys, check)
        total.absorb(asyncio.run(verify_archive(ArchiveReader(found, cipher), trust, _blobs(directory, archive))))
    where = archive or directory.persistence.archive
    emit({"archive": where, **total.to_dict()}, output, lambda: print_report(total, where))
    if not total.valid:
        raise typer.Exit(exit_codes.FAILED)


def _place(directory: DataDirectory, archive: str | None) -> "ArchivePlace":
    from knhk.bootstrap.protection import ArchivePlace

    where = archive or directory.persistence.archive
    if not where:
        raise InvalidInput("there is no archive", hint="Name it with --archive, or in persistence.archive.")
    return ArchivePlace(where, make=False)


def _blobs(directory: DataDirectory, archive: str | None) -> "ArchivedBlobs":
    from knhk.protection.blob_archive import ArchivedBlobs

    return ArchivedBlobs(_place(directory, archive), cipher_of(directory).keys)


def _decoded(place: "ArchivePlace", name: str) -> "Archive":
    from knhk.protection.archive import Archive

    return Archive.decode(place.read(name), name)


def _with(directory: DataDirectory, archive: str | None, number: int) -> "tuple[str, ArchiveReader]":
    from knhk.protection.archive import ArchiveReader

    place = _place(directory, archive)
    for name in reversed(place.names()):
        found = _decoded(place, name)
        if found.has(number):
            return name, ArchiveReader(found, cipher_of(directory))
    raise WorkflowNotFound(f"there is no workflow wf-{number} in the archive")
