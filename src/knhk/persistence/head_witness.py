"""A second place that knows how long the journal is: `journal.head` in the data directory.

RocksDB forgives a torn record at the end of its log, since a killed process leaves one. A damaged length byte looks the
same, and acknowledged commits would be dropped without a word. So after each synced commit the partition's head is
noted here as well, and opening refuses a journal that ends before it.

    file     1024 slots of 64 bytes, one per partition; all zero: no block yet
    slot     'KNH1' | partition 2 | height 8 | block hash 32 | CRC-32 of these 4 | 14 zero bytes      (big-endian)

Slots are written without fsync: after a power cut the witness may lag behind the journal, which is harmless, and never
runs ahead of it, because the journal is synced first. A slot lies within one disk sector, so it is not torn.
"""

import os
import zlib
from pathlib import Path
from struct import Struct
from typing import Final

from knhk.domain.errors import JournalCorrupt
from knhk.domain.identifier import PARTITION_BITS
from knhk.persistence.fencing import Tip

FILE_NAME: Final = "journal.head"
SLOT_BYTES: Final = 64
FILE_BYTES: Final = SLOT_BYTES << PARTITION_BITS
_BODY: Final = Struct(">4sHQ32s")
_MAGIC: Final = b"KNH1"
_EMPTY: Final = bytes(SLOT_BYTES)


def encode_slot(partition: int, tip: Tip) -> bytes:
    """The 64 bytes that note a partition's head."""
    body = _BODY.pack(_MAGIC, partition, tip.height, tip.hash)
    return (body + zlib.crc32(body).to_bytes(4, "big")).ljust(SLOT_BYTES, b"\x00")


def read(directory: Path) -> dict[int, Tip] | None:
    """The heads that were noted, by partition; None if there is no such file.

    An empty file is how an operator says that the file is lost and the journal is to be believed: no heads.
    Raises JournalCorrupt if the file is damaged.
    """
    path = directory / FILE_NAME
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(raw) not in (0, FILE_BYTES):
        raise JournalCorrupt(f"{path} has {len(raw)} bytes instead of {FILE_BYTES}", hint=_HINT)
    heads = {}
    for partition, start in enumerate(range(0, len(raw), SLOT_BYTES)):
        slot = raw[start : start + SLOT_BYTES]
        if slot == _EMPTY:
            continue
        _, _, height, block_hash = _BODY.unpack_from(slot)
        tip = Tip(height, block_hash)
        if slot != encode_slot(partition, tip):
            raise JournalCorrupt(f"{path} is damaged at byte {start}, the head of partition {partition}", hint=_HINT)
        heads[partition] = tip
    return heads


_HINT: Final = (
    "Verify the journal with `knhk verify --full`. If it is whole and ends where it should, replace journal.head by an "
    "empty file; it is written anew at the next start."
)


class HeadWitness:
    """The open file, written after each synced commit."""

    def __init__(self, directory: Path, heads: dict[int, Tip]) -> None:
        """Open or make the file and write `heads` durably. Raises OSError."""
        self._file = os.open(directory / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        whole = bytearray(FILE_BYTES)
        for partition, tip in heads.items():
            whole[partition * SLOT_BYTES : (partition + 1) * SLOT_BYTES] = encode_slot(partition, tip)
        try:
            os.pwrite(self._file, whole, 0)
            os.fsync(self._file)
        except OSError:
            os.close(self._file)
            raise

    def note(self, partition: int, tip: Tip) -> None:
        """Note a head whose block is synced. Raises OSError."""
        os.pwrite(self._file, encode_slot(partition, tip), partition * SLOT_BYTES)

    def close(self) -> None:
        """Release the file; closing twice is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def missing(directory: Path) -> JournalCorrupt:
    """The error for a journal without a witness."""
    return JournalCorrupt(f"{directory} has a journal but no {FILE_NAME}, which says where it must end", hint=_HINT)
