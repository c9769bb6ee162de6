"""`knhk recover`, the whole of it: copy, replay, verify, switch; and what came of it."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from knhk.domain.errors import BackupCorrupt, Corrupt, InvalidConfiguration
from knhk.domain.times import rfc3339
from knhk.persistence import head_witness
from knhk.persistence.blob_area import BlobArea
from knhk.persistence.blob_check import references
from knhk.persistence.fencing import Tip
from knhk.persistence.journal_check import verify_all
from knhk.persistence.journal_import import JournalImport
from knhk.persistence.partition_directories import FOLDER as PARTITIONS
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.persistence.scanner import Progress
from knhk.persistence.verification import CheckSignature, Report, Trust
from knhk.ports.environment import PublicKey
from knhk.recovery.blob_shipping import fetch
from knhk.recovery.manifest import Head
from knhk.recovery.places import Place
from knhk.recovery.replay import Replayed, replay, sum_of
from knhk.recovery.restore import Source, Staging, offline

OpenStore = Callable[[Path], RocksDbStore]
"""Opens the store in a directory for reading."""


class Segments(msgspec.Struct, frozen=True):
    """Where segments are, and up to which time they are replayed (Unix time in ns, 0 for all)."""

    place: Place
    to_ns: int
    options: StoreOptions


class Part(msgspec.Struct, frozen=True):
    """What a store is restored from: a snapshot, if there is one, and the segments that are replayed after it.

    `folder` is where the store is in the data directory; "" for the directory itself.
    """

    folder: str
    source: Source | None
    segments: tuple[Segments, ...] = ()

    @property
    def name(self) -> str:
        """What is restored, in words; the same words are the same restore."""
        said = [] if self.source is None else [self.source.name]
        for one in self.segments:
            until = f" up to {rfc3339(one.to_ns)}" if one.to_ns else ""
            said.append(f"the segments in {one.place}{until}")
        return " and ".join(said)


class Recovered(msgspec.Struct):
    """What a restore did. `until_ns` is the time of the newest block (0: none), `missing` what is known to be gone."""

    data: str
    source: str
    kept: str
    signed_by: str
    heads: list[Head]
    until_ns: int
    report: Report
    missing: list[str]
    remarks: list[str]
    replayed: Replayed | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-like data."""
        return {
            "data": self.data,
            "source": self.source,
            "recovered_to": rfc3339(self.until_ns) if self.until_ns else None,
            "replayed": None if self.replayed is None else msgspec.to_builtins(self.replayed),
            "heads": [msgspec.to_builtins(head) for head in self.heads],
            "missing": self.missing,
            "remarks": self.remarks,
            "old_data": self.kept or None,
            "signed_by": self.signed_by or None,
            "verification": self.report.to_dict(),
        }


def recover(
    data: Path,
    parts: Sequence[Part],
    *,
    whole: bool = False,
    pinned: list[PublicKey] | None,
    check: CheckSignature,
    open_store: OpenStore,
    now_ns: int,
    progress: Progress,
) -> Recovered:
    """Put what `parts` say in the place of a data directory, which is kept beside it.

    Without a snapshot, the segments must begin with the first block. All is verified before anything is put in place,
    and that happens in one step. `whole` says that all partitions are restored; else those in `partitions/` stay.

    Raises:
        DataDirectoryInUse: a server holds the data directory, or another restore is under way.
        BackupCorrupt: the source is not what was written; nothing was changed.
        DiskFull, StorageUnavailable, BackupUnavailable: the same command goes on where this one ended.
    """
    data = data.absolute()
    data.parent.mkdir(parents=True, exist_ok=True)
    replayed: list[Replayed] = []
    name = "; ".join(part.name for part in parts)
    sources = {part.folder: part.source for part in parts if part.source is not None}
    with offline(data), Staging(data, sources, name, whole=whole).opened() as staging:
        if staging.is_switching:
            kept = staging.switch(now_ns)
            checked = _all_checked(data, parts, pinned, check, open_store, progress)
        else:
            try:
                staging.copy(progress)
                for part in parts:
                    replayed += _after(staging.path / part.folder, part, pinned, check, open_store, progress)
                checked = _all_checked(staging.path, parts, pinned, check, open_store, progress)
            except BackupCorrupt:
                staging.discard()
                raise
            except (Corrupt, InvalidConfiguration) as error:  # it cannot even be opened, such as a torn copy
                staging.discard()
                raise BackupCorrupt(f"{name}: {error.message}") from error
            with offline(data):  # a server may have been started where there were no data before
                kept = staging.switch(now_ns)
    heads, report, remarks = checked
    missing = [] if kept is None else _lost(kept, heads)
    total = sum_of(replayed)
    if total is not None and total.left_out:
        missing.append(f"{total.left_out} blocks that are younger than the time that was asked for")
    signers = {source.signer.key_id: None for source in sources.values() if source.signer is not None}
    return Recovered(
        data=str(data),
        source=name,
        kept="" if kept is None else str(kept),
        signed_by=", ".join(signers),
        heads=heads,
        until_ns=max((head.at_ns for head in heads), default=0),
        report=report,
        missing=missing,
        remarks=remarks,
        replayed=total,
    )


def _after(
    path: Path,
    part: Part,
    pinned: list[PublicKey] | None,
    check: CheckSignature,
    open_store: OpenStore,
    progress: Progress,
) -> list[Replayed]:
    """Replay what was shipped after the snapshot; one without a block leaves no store where there was none."""
    done = []
    for segments in part.segments:
        done.append(_replay(path, segments, pinned, check, progress))
        _fetch_blobs(path, segments.place, open_store, progress)
    return done


def _all_checked(
    data: Path,
    parts: Sequence[Part],
    pinned: list[PublicKey] | None,
    check: CheckSignature,
    open_store: OpenStore,
    progress: Progress,
) -> tuple[list[Head], Report, list[str]]:
    heads, report, remarks = list[Head](), Report(), list[str]()
    for part in parts:
        found = _checked(data / part.folder, part.source, part.name, pinned, check, open_store, progress)
        heads += found[0]
        report.absorb(found[1])
        remarks += found[2]
    return heads, report, remarks


def _replay(
    path: Path, segments: Segments, pinned: list[PublicKey] | None, check: CheckSignature, progress: Progress
) -> Replayed:
    journal = JournalImport(path, segments.options, pinned, check)
    try:
        return replay(journal, segments.place, to_ns=segments.to_ns, pinned=pinned, check=check, progress=progress)
    finally:
        journal.close()


def _fetch_blobs(path: Path, place: Place, open_store: OpenStore, progress: Progress) -> None:
    """Bring the blobs that the replayed receipts refer to."""
    store = open_store(path)
    try:
        used = dict.fromkeys(digest for _, digest in references(store.scanner().scan_payloads()))
        fetch(place, BlobArea.reader(path, store.cipher.keys), used, progress)
    finally:
        asyncio.run(store.close())


def _checked(
    path: Path,
    source: Source | None,
    name: str,
    pinned: list[PublicKey] | None,
    check: CheckSignature,
    open_store: OpenStore,
    progress: Progress,
) -> tuple[list[Head], Report, list[str]]:
    """Verify the restored store. Raises BackupCorrupt, naming what is wrong."""
    store = open_store(path)
    try:
        return asyncio.run(_check(store, path, source, name, pinned, check, progress))
    finally:
        asyncio.run(store.close())


async def _check(
    store: RocksDbStore,
    path: Path,
    source: Source | None,
    name: str,
    pinned: list[PublicKey] | None,
    check: CheckSignature,
    progress: Progress,
) -> tuple[list[Head], Report, list[str]]:
    keys, scanner, remarks = await store.keys(), store.scanner(), []
    heads = []
    for partition in scanner.partitions():
        head = await store.head(partition)
        if head is not None:
            heads.append(Head.of(head))
    if source is not None and source.manifest is not None:
        _compare(source, keys, heads)
    elif source is not None:
        remarks.append("the backup has no manifest: nobody vouches that it is whole; every byte of it was verified")
        progress("files", 0, 0)
        scanner.verify_files()
    trust = Trust.of(pinned or keys, check)
    report = await verify_all(store, scanner, trust, progress, blobs=BlobArea.reader(path, store.cipher.keys))
    if not report.valid:
        named = "; ".join(report.problems[:5])
        raise BackupCorrupt(f"{name} does not verify ({report.problem_count} problems): {named}")
    return heads, report, remarks


def _compare(source: Source, keys: list[PublicKey], heads: list[Head]) -> None:
    """What the manifest says of the journal against the journal itself."""
    manifest, signer = source.manifest, source.signer
    assert manifest is not None
    assert signer is not None
    if keys and all(key.raw != signer.raw for key in keys):
        raise BackupCorrupt(
            f"{source.name}: the manifest is signed by key {signer.key_id!r}, which never signed this journal"
        )
    found = {head.partition: head for head in heads}
    for promised in manifest.heads:
        head = found.get(promised.partition)
        if head is None or head.height < promised.height:
            raise BackupCorrupt(
                f"{source.name}: partition {promised.partition} ends before block {promised.height}, "
                "which the manifest says is in it"
            )


def _lost(kept: Path, heads: list[Head]) -> list[str]:
    """What the old data directory had acknowledged and the new one does not have."""
    noted: dict[int, Tip] = {}
    for directory in (kept, *sorted((kept / PARTITIONS).glob("[0-9]*"))):
        try:
            said = head_witness.read(directory)
        except (Corrupt, OSError) as error:
            return [f"it is not known up to where the old data went: {error}"]
        if said is None:
            return [f"it is not known up to where the old data went: {directory} has no journal.head"]
        noted |= said
    found = {head.partition: head.height for head in heads}
    return [
        f"blocks {found.get(partition, -1) + 1} to {tip.height} of partition {partition}, which the old data had"
        for partition, tip in sorted(noted.items())
        if tip.height > found.get(partition, -1)
    ]
