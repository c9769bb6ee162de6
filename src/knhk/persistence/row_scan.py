"""JournalScanner over the rows of any store: iterators over many gigabytes, with one run in memory at a time."""

from collections.abc import Iterator
from typing import Final

from knhk.domain.errors import Corrupt, DataErased, EncryptionKeyUnavailable
from knhk.domain.receipt import Sealed, SignedBlock
from knhk.persistence import codec, receipt_rows
from knhk.persistence.block_rows import decode_signed_block
from knhk.persistence.cipher import Cipher, is_sealed
from knhk.persistence.prune_records import PRUNED, SignedRecord, decode_record
from knhk.persistence.rocksdb_keys import BLOCK, FAMILIES, PARTITION, RUN, after, run_key
from knhk.persistence.rows import Rows
from knhk.persistence.scanner import ERASED_ROW, LOCKED_ROW

_BLOCKS: Final = 64
"""Whose receipts are read together."""


class RowScanner:
    """Reads an open store; each iterator sees the journal as it was when the iteration began."""

    def __init__(self, rows: Rows, cipher: Cipher) -> None:
        self._rows, self._cipher = rows, cipher

    def partitions(self) -> list[int]:
        return partitions(self._rows)

    def scan_receipts(self, partition: int | None = None) -> Iterator[tuple[int, list[Sealed]]]:
        current = -1
        receipts: list[Sealed] = []
        for key, value in self._of("receipts", partition):
            _, workflow_id, _ = RUN.unpack(key)
            if workflow_id != current:
                if receipts:
                    yield current, receipts
                current, receipts = workflow_id, []
            receipts += receipt_rows.decode(value, key, workflow_id, self._cipher)
        if receipts:
            yield current, receipts

    def scan_blocks(self, partition: int | None = None) -> Iterator[SignedBlock]:
        for key, value in self._of("blocks", partition):
            of, height = BLOCK.unpack(key)
            yield decode_signed_block(value, of, height)

    def scan_block_receipts(self, partition: int) -> Iterator[tuple[SignedBlock, list[Sealed] | Corrupt]]:
        for page in _pages(self.scan_blocks(partition)):
            keys = [run_key(part.workflow_id, part.first_seq) for signed in page for part in signed.slices]
            found = dict(zip(keys, self._rows.get_many("receipts", keys), strict=True))
            for signed in page:
                try:
                    yield signed, self._receipts_of(signed, found)
                except Corrupt as error:
                    yield signed, error

    def _receipts_of(self, signed: SignedBlock, rows: dict[bytes, bytes | None]) -> list[Sealed]:
        found: list[Sealed] = []
        for part in signed.slices:
            key = run_key(part.workflow_id, part.first_seq)
            row = rows[key]
            if row is not None:
                found += receipt_rows.decode(row, key, part.workflow_id, self._cipher)[: part.count]
        return found

    def scan_payloads(self, partition: int | None = None) -> Iterator[tuple[int, int, int, bytes]]:
        for key, value in self._of("payloads", partition):
            _, workflow_id, seq = RUN.unpack(key)
            try:
                row = self._cipher.open("payloads", key, value, workflow_id=workflow_id)
            except EncryptionKeyUnavailable:
                yield workflow_id, seq, LOCKED_ROW, b""
                continue
            except DataErased:
                yield workflow_id, seq, ERASED_ROW, b""
                continue
            for payload in sorted(codec.decode(row, workflow_id), key=lambda one: (one.seq, one.slot)):
                yield workflow_id, payload.seq, payload.slot, payload.raw

    def prune_records(self) -> Iterator[SignedRecord]:
        for _, row in self._rows.scan("meta", PRUNED, after(PRUNED)):
            yield decode_record(row)

    def verify_files(self) -> int:
        count = 0
        for family in FAMILIES:
            for key, row in self._rows.scan(family, b"", None):
                count += 1
                if family in ("runs", "index") and is_sealed(row) and self._cipher.keys is not None:
                    self._cipher.open(family, key, row)  # the other families are looked at one by one anyway
        return count

    def _of(self, family: str, partition: int | None) -> Iterator[tuple[bytes, bytes]]:
        if partition is None:
            return self._rows.scan(family, b"", None)
        return self._rows.scan(family, PARTITION.pack(partition), PARTITION.pack(partition + 1))


def _pages(blocks: Iterator[SignedBlock]) -> Iterator[list[SignedBlock]]:
    page: list[SignedBlock] = []
    try:
        for signed in blocks:
            page.append(signed)
            if len(page) == _BLOCKS:
                yield page
                page = []
    except Corrupt:
        yield page  # what is before the damage is still checked
        raise
    yield page


def partitions(rows: Rows) -> list[int]:
    """The partitions that have blocks, ascending."""
    found: list[int] = []
    start = b""
    while (row := next(rows.scan("blocks", start, None), None)) is not None:
        partition, _ = BLOCK.unpack(row[0])
        found.append(partition)
        start = PARTITION.pack(partition + 1)
    return found
