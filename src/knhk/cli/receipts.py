"""`knhk receipts`: show, verify and prove what happened. Reads the data directory; no server is needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knhk.cli import exit_codes, signing_keys
from knhk.cli.files import read_bytes, read_public_key, write_bytes
from knhk.cli.options import ConfigOption, DataOption, IdArgument, OutputOption, PublicKeyOption
from knhk.cli.output import Output, emit, note, print_fields, print_table
from knhk.cli.store import DataDirectory, blobs_in, data_directory, directory_with, others_in, reading, trust_of
from knhk.cli.verdict import print_report, progress_bar
from knhk.domain.errors import InvalidInput

if TYPE_CHECKING:
    from knhk.persistence.proofs import Proof, Proven
    from knhk.persistence.scanner import ScannedJournal
    from knhk.persistence.verification import Report

app = typer.Typer(
    name="receipts",
    help="Show, verify and prove what happened. No server is needed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(signing_keys.app)


@app.command()
def verify(
    context: typer.Context,
    workflow_id: Annotated[str | None, typer.Argument(metavar="ID", help="Workflow id.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Verify all workflows and all blocks.")] = False,
    public_key: PublicKeyOption = None,
    data: DataOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Verify a workflow, or everything.

    Recomputes hashes, chains, payload digests, Merkle roots and signatures. Exits 1 if anything is wrong.
    """
    from knhk.domain.identifier import parse
    from knhk.persistence.journal_check import verify_all, verify_workflow

    if everything == (workflow_id is not None):
        raise InvalidInput("name one workflow, or give --all", hint="See `knhk receipts verify --help`.")

    number = None if workflow_id is None else parse(workflow_id)
    directory = data_directory(context, data, config)

    async def read(store: "ScannedJournal", at: DataDirectory) -> "Report":
        trust = await trust_of(store, public_key)
        if number is not None:
            return await verify_workflow(store, number, trust)
        with progress_bar() as progress:
            return await verify_all(store, store.scanner(), trust, progress, blobs=blobs_in(at, store))

    def look(at: DataDirectory) -> "Report":
        return reading(at, lambda store: read(store, at))

    report = look(directory if number is None else directory_with(directory, number))
    for further in others_in(directory) if number is None else ():
        report.absorb(look(further))
    subject = {} if number is None else {"workflow_id": workflow_id}
    emit({**subject, **report.to_dict()}, output, lambda: print_report(report, workflow_id or "the journal"))
    if not report.valid:
        raise typer.Exit(exit_codes.FAILED)


@app.command()
def show(
    context: typer.Context,
    workflow_id: IdArgument,
    from_seq: Annotated[int, typer.Option("--from-seq", min=0, help="The first receipt to show.")] = 0,
    data: DataOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """The receipts of a workflow."""
    from knhk.domain.errors import WorkflowNotFound
    from knhk.domain.identifier import parse
    from knhk.domain.times import rfc3339
    from knhk.engine.loader import decode_receipts

    number = parse(workflow_id)

    async def read(store: "ScannedJournal") -> list[dict[str, Any]]:
        found = await store.receipts(number, from_seq)
        if not found and not (from_seq and await store.receipts(number)):
            raise WorkflowNotFound(f"there is no workflow {workflow_id}")
        return decode_receipts(found, number)

    rows = reading(directory_with(data_directory(context, data, config), number), read)

    def table() -> None:
        columns = ("seq", "at", "kind", "step", "attempt", "actor", "detail", "hash")
        cells = [
            (
                row["seq"],
                rfc3339(row["at_ns"]),
                row["kind"],
                row["step"],
                row["attempt"] or None,
                row["actor"],
                row["detail"] or None,
                row["hash"][:16],
            )
            for row in rows
        ]
        print_table(columns, cells, folds=("step", "detail"))

    emit({"workflow_id": workflow_id, "receipts": rows}, output, table)


@app.command()
def prove(
    context: typer.Context,
    workflow_id: IdArgument,
    seq: Annotated[int, typer.Option("--seq", min=0, help="Which receipt.")],
    output_file: Annotated[
        Path | None, typer.Option("--output-file", "-f", help="Where to write the proof, instead of stdout.")
    ] = None,
    public_key: PublicKeyOption = None,
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Write a proof that a receipt is there.

    The proof is JSON; the public key alone is needed to check it.
    """
    import msgspec

    from knhk.domain.identifier import parse
    from knhk.persistence.proofs import prove as make

    number = parse(workflow_id)

    async def read(store: "ScannedJournal") -> "Proof":
        return await make(store, number, seq, await trust_of(store, public_key))

    proof = reading(directory_with(data_directory(context, data, config), number), read)
    raw = msgspec.json.format(msgspec.json.encode(proof), indent=2) + b"\n"
    if output_file is None:
        typer.echo(raw.decode(), nl=False)
    else:
        write_bytes(output_file, raw)
        note(f"The proof of receipt {seq} of {workflow_id} is in {output_file}.")


@app.command("check-proof")
def check_proof(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The proof; - for stdin.")],
    public_key: Annotated[
        list[Path], typer.Option("--public-key", metavar="PEM", help="The key that must have signed. Repeatable.")
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Check a proof, given the public key.

    Nothing else is needed. Exits 1 if the proof does not hold.
    """
    from knhk.persistence import proofs
    from knhk.persistence.verification import Trust
    from knhk.security.signing import verify as check

    trust = Trust.of([read_public_key(path) for path in public_key], check)
    proven = proofs.check_proof(proofs.decode_proof(read_bytes(file)), trust)
    shown = _proven(proven)
    emit(shown, output, lambda: print_fields(shown.items()))
    if proven.objection:
        raise typer.Exit(exit_codes.FAILED)


def _proven(proven: "Proven") -> dict[str, Any]:
    from knhk.domain.times import rfc3339
    from knhk.engine.loader import decode_receipts

    receipt, block = proven.receipt, proven.block
    shown: dict[str, Any] = {"valid": not proven.objection}
    if proven.objection:
        return {**shown, "objection": proven.objection}
    return {
        **shown,
        **decode_receipts([proven.sealed], receipt.workflow_id)[0],
        "at": rfc3339(receipt.at_ns),
        "partition": block.partition,
        "block_height": block.height,
        "block_at": rfc3339(block.at_ns),
        "node_id": block.node_id,
        "key_id": block.key_id,
    }
