"""`knhk verify`: is a journal what was written? Offline, in constant memory."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from knhk.cli import exit_codes
from knhk.cli.options import ConfigOption, DataOption, OutputOption, PublicKeyOption
from knhk.cli.output import Output, emit
from knhk.cli.store import DataDirectory, blobs_in, data_directory, others_in, reading, trust_of
from knhk.cli.verdict import print_report, progress_bar

if TYPE_CHECKING:
    from knhk.persistence.scanner import ScannedJournal
    from knhk.persistence.verification import Report


def verify(
    context: typer.Context,
    data: DataOption = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Also read every stored byte, and verify inputs, outputs and descriptors."),
    ] = False,
    public_key: PublicKeyOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Verify a data directory or database, offline.

    Recomputes all receipts, chains, blocks and signatures. Without the encryption key, the hashes of encrypted receipts
    are verified by the signed blocks, and their contents are not. Exits 1 if anything is wrong.
    """
    directory = data_directory(context, data, config)

    def look(at: DataDirectory) -> "Report":
        return reading(at, lambda store: _verified(store, at, full, public_key))

    report = _incomplete(directory) or look(directory)
    for further in others_in(directory):
        report.absorb(look(further))
    shown = {"data": directory.name, "full": full, **report.to_dict()}
    emit(shown, output, lambda: print_report(report, directory.name))
    if not report.valid:
        raise typer.Exit(exit_codes.FAILED)


def _incomplete(directory: DataDirectory) -> "Report | None":
    """What is wrong with the copy of a snapshot by its manifest; None if nothing is, or if it is not one."""
    if directory.persistence.url:
        return None
    path = directory.path
    from knhk.persistence.verification import Report
    from knhk.recovery import manifest as manifests

    manifest = manifests.read(path)
    if manifest is None:
        return None
    report = Report()
    with progress_bar() as progress:
        for fault in manifests.faults(path, manifest, progress):
            report.note("corrupt", f"{path}: {fault}")
    return None if report.valid else report


async def _verified(
    store: "ScannedJournal", directory: DataDirectory, full: bool, public_key: list[Path] | None
) -> "Report":
    from knhk.domain.errors import Corrupt
    from knhk.persistence.journal_check import verify_all

    trust = await trust_of(store, public_key)
    scanner = store.scanner()
    damage = ""
    with progress_bar() as progress:
        if full:
            progress("files", 0, 0)
            try:
                entries = scanner.verify_files()
                progress("files", entries, entries)
            except Corrupt as error:
                damage = error.message
        report = await verify_all(store, scanner, trust, progress, payloads=full, blobs=blobs_in(directory, store))
    if damage:
        report.note("corrupt", damage)
    return report
