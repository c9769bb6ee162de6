"""Archives of pruned runs: one file for each record, which verifies by itself with a public key.

    'KNHKARC1' | zstd frame of the msgpack array [[record body, signature], public keys, rows]

`rows` are [column family, key, value] as they were stored: what is encrypted at rest is encrypted here too, with keys
that are not in it, and what is erased later cannot be read here either. The record (persistence/prune_records.py) is
signed and has the digest over the last hash of every run, so that a changed, added or missing receipt shows.
"""

from hashlib import sha256
from typing import Final, Protocol

import msgspec
import zstandard

from knhk.domain.errors import BackupCorrupt, Corrupt, DataErased, EncryptionKeyUnavailable
from knhk.domain.identifier import to_text
from knhk.domain.receipt import Sealed
from knhk.persistence import codec, receipt_rows
from knhk.persistence.blob_check import references
from knhk.persistence.cipher import Cipher
from knhk.persistence.journal_check import check_descriptor
from knhk.persistence.prune_records import PruneRecord, SignedRecord, digest_entry
from knhk.persistence.pruning_check import objection_to
from knhk.persistence.rocksdb_keys import DESCRIPTOR, RUN
from knhk.persistence.rows import Row
from knhk.persistence.scanner import ERASED_ROW, LOCKED_ROW
from knhk.persistence.verification import Report, RunCheck, Trust
from knhk.ports.environment import PublicKey
from knhk.protection.blob_archive import ArchivedBlobs

MAGIC: Final = b"KNHKARC1"
SUFFIX: Final = ".knhk-archive"
_MOST_BYTES: Final = 1 << 31
_LEVEL: Final = 9


class Place(Protocol):
    """Where archives are kept. Both methods block, and raise KnhkError."""

    def put(self, name: str, content: bytes) -> None: ...

    def read(self, name: str) -> bytes: ...

    def names(self) -> list[str]:
        """All files, sorted."""
        ...


class Archive(msgspec.Struct, array_like=True):
    """What is in a file, decoded."""

    signed: SignedRecord
    keys: list[PublicKey]
    rows: list[Row]

    @classmethod
    def decode(cls, raw: bytes, name: str) -> "Archive":
        """From a file's bytes. Raises BackupCorrupt if they are not what was written."""
        try:
            if not raw.startswith(MAGIC):
                raise ValueError("it does not begin as an archive does")
            frame = raw[len(MAGIC) :]
            if not 0 < zstandard.frame_content_size(frame) <= _MOST_BYTES:
                raise ValueError("it does not say how long it is")
            archive = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(frame), type=cls)
            archive.signed.record()
        except (ValueError, zstandard.ZstdError) as error:  # msgspec's errors are ValueErrors
            raise BackupCorrupt(f"the archive {name} is damaged: {error}") from error
        return archive

    def record(self) -> PruneRecord:
        """What was pruned when the file was written."""
        return self.signed.record()

    def has(self, run: int) -> bool:
        """Whether a run is in it."""
        return any(family == "receipts" and RUN.unpack(key)[1] == run for family, key, _ in self.rows)

    def encode(self) -> bytes:
        """The file's bytes."""
        packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)
        return MAGIC + packed.compress(msgspec.msgpack.encode(self))


def digest_of_rows(rows: list[Row]) -> bytes:
    """What the record says of them."""
    return sha256(msgspec.msgpack.encode(rows)).digest()


class ArchiveReader:
    """An archive's runs, opened with a key ring if they are encrypted."""

    def __init__(self, archive: Archive, cipher: Cipher) -> None:
        self.archive, self._cipher = archive, cipher

    def runs(self) -> dict[int, list[Sealed]]:
        """Each run with its receipts, ascending by id. Raises Corrupt."""
        found: dict[int, list[Sealed]] = {}
        for family, key, row in self.archive.rows:
            if family == "receipts":
                run = RUN.unpack(key)[1]
                found.setdefault(run, []).extend(receipt_rows.decode(row, key, run, self._cipher))
        return dict(sorted(found.items()))

    def payloads(self, run: int) -> dict[tuple[int, int], bytes]:
        """A run's inputs (slot 0) and outputs (slot 1) by seq; rows that cannot be opened as scanner.py says."""
        found: dict[tuple[int, int], bytes] = {}
        for family, key, row in self.archive.rows:
            if family != "payloads" or RUN.unpack(key)[1] != run:
                continue
            seq = RUN.unpack(key)[2]
            try:
                opened = self._cipher.open("payloads", key, row, workflow_id=run)
            except EncryptionKeyUnavailable:
                found[seq, LOCKED_ROW] = b""
            except DataErased:
                found[seq, ERASED_ROW] = b""
            else:
                found.update({(one.seq, one.slot): one.raw for one in codec.decode(opened, run)})
        return found

    async def descriptor(self, digest: bytes) -> bytes | None:
        """A descriptor's bytes."""
        for family, key, row in self.archive.rows:
            if family == "index" and key == DESCRIPTOR + digest:
                return self._cipher.open(family, key, row)
        return None


async def verify_archive(reader: ArchiveReader, trust: Trust, blobs: ArchivedBlobs | None = None) -> Report:
    """Whether an archive is what was pruned: signature, rows, and every receipt, chain, payload and blob."""
    report, record = Report(), reader.archive.record()
    objection = objection_to(reader.archive.signed, record, trust)
    if objection:
        report.note("signature", f"record {record.number}: {objection}")
    if digest_of_rows(reader.archive.rows) != record.archive_sha256:
        report.note("corrupt", f"record {record.number}: the rows are not those that were archived")
    try:
        runs = reader.runs()
    except Corrupt as error:
        report.note("corrupt", error.message)
        return report
    entries, used = [], dict[str, int]()
    for run, sealed in runs.items():
        check = RunCheck(run, report)
        check.chain(sealed)
        try:
            payloads = reader.payloads(run)
            check.payloads({place: sha256(raw).digest() for place, raw in payloads.items()})
            used.update((digest, run) for _, digest in references((run, *at, raw) for at, raw in payloads.items()))
        except Corrupt as error:
            report.note("corrupt", error.message)
        for digest in check.descriptor_digests:
            await check_descriptor(reader, digest, to_text(run), report)
        entries.append(digest_entry(run, sealed[-1].hash))
        report.workflows += 1
        report.total_count += len(sealed)
        report.verified_count += sum(one.has_body and one.hash not in check.faulty for one in sealed)
    if blobs is not None:
        blobs.check(used, report)
    if sha256(b"".join(entries)).digest() != record.digest or report.total_count != record.receipts:
        report.note("chain_break", f"record {record.number}: these are not the workflows that were pruned")
    return report
