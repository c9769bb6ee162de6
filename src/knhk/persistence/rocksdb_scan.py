"""JournalScanner over RocksDB: iterators over a store of many gigabytes, with one run in memory at a time."""

from collections.abc import Iterator

import msgspec

from knhk.domain.errors import JournalCorrupt
from knhk.domain.receipt import Sealed, SignedBlock
from knhk.persistence import codec
from knhk.persistence.rocksdb_database import Database
from knhk.persistence.rocksdb_keys import BLOCK, FAMILIES, PARTITION, RUN
from knhk.persistence.rocksdb_opening import decode_signed_block, partitions

_SLICE = msgspec.msgpack.Decoder(list[Sealed])


def decode_slice(raw: bytes, workflow_id: int) -> list[Sealed]:
    """The receipts of a stored slice. Raises JournalCorrupt, naming the run, if the bytes are not one."""
    try:
        return _SLICE.decode(raw)
    except msgspec.DecodeError as error:
        raise JournalCorrupt(f"receipts of wf-{workflow_id} cannot be decoded: {error}") from error


class RocksDbScanner:
    """Reads an open database; each iterator sees the journal as it was when the iteration began."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
            receipts += decode_slice(value, workflow_id)
        if receipts:
            yield current, receipts

    def scan_blocks(self, partition: int | None = None) -> Iterator[SignedBlock]:
        for key, value in self._rows("blocks", partition):
            of, height = BLOCK.unpack(key)
            yield decode_signed_block(value, of, height)

    def scan_payloads(self, partition: int | None = None) -> Iterator[tuple[int, int, int, bytes]]:
        for key, value in self._rows("payloads", partition):
            _, workflow_id, _ = RUN.unpack(key)
            for payload in sorted(codec.decode(value), key=lambda one: (one.seq, one.slot)):
                yield workflow_id, payload.seq, payload.slot, payload.raw

    def verify_files(self) -> int:
        return sum(1 for family in FAMILIES for _ in self._database.scan(family, b"", None))

    def _rows(self, family: str, partition: int | None) -> Iterator[tuple[bytes, bytes]]:
        if partition is None:
            return self._database.scan(family, b"", None)
        return self._database.scan(family, PARTITION.pack(partition), PARTITION.pack(partition + 1))
