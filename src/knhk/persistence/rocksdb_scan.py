"""JournalScanner over RocksDB: iterators over a store of many gigabytes, with one run in memory at a time."""

from collections.abc import Iterator

from knhk.domain.errors import DataErased, EncryptionKeyUnavailable
from knhk.domain.receipt import Sealed, SignedBlock
from knhk.persistence import codec, receipt_rows
from knhk.persistence.block_rows import decode_signed_block
from knhk.persistence.cipher import Cipher, is_sealed
from knhk.persistence.prune_records import PRUNED, SignedRecord, decode_record
from knhk.persistence.rocksdb_database import Database
from knhk.persistence.rocksdb_keys import BLOCK, FAMILIES, PARTITION, RUN, after
from knhk.persistence.rocksdb_opening import partitions
from knhk.persistence.scanner import ERASED_ROW, LOCKED_ROW


class RocksDbScanner:
    """Reads an open database; each iterator sees the journal as it was when the iteration began."""

    def __init__(self, database: Database, cipher: Cipher) -> None:
        self._database, self._cipher = database, cipher

    def partitions(self) -> list[int]:
        return partitions(self._database)

    def scan_receipts(self, partition: int | None = None) -> Iterator[tuple[int, list[Sealed]]]:
        current = -1
        receipts: list[Sealed] = []
        for key, value in self._rows("receipts", partition):
            _, workflow_id, _ = RUN.unpack(key)
            if workflow_id != current:
                if receipts:
                    yield current, receipts
                current, receipts = workflow_id, []
            receipts += receipt_rows.decode(value, key, workflow_id, self._cipher)
        if receipts:
            yield current, receipts

    def scan_blocks(self, partition: int | None = None) -> Iterator[SignedBlock]:
        for key, value in self._rows("blocks", partition):
            of, height = BLOCK.unpack(key)
            yield decode_signed_block(value, of, height)

    def scan_payloads(self, partition: int | None = None) -> Iterator[tuple[int, int, int, bytes]]:
        for key, value in self._rows("payloads", partition):
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
        for _, row in self._database.scan("meta", PRUNED, after(PRUNED)):
            yield decode_record(row)

    def verify_files(self) -> int:
        count = 0
        for family in FAMILIES:
            for key, row in self._database.scan(family, b"", None):
                count += 1
                if family in ("runs", "index") and is_sealed(row) and self._cipher.keys is not None:
                    self._cipher.open(family, key, row)  # the other families are looked at one by one anyway
        return count

    def _rows(self, family: str, partition: int | None) -> Iterator[tuple[bytes, bytes]]:
        if partition is None:
            return self._database.scan(family, b"", None)
        return self._database.scan(family, PARTITION.pack(partition), PARTITION.pack(partition + 1))
