"""Reading a whole journal for verification, without an event loop and in constant memory."""

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from knhk.domain.errors import Corrupt
from knhk.domain.receipt import Sealed, SignedBlock
from knhk.persistence.prune_records import SignedRecord
from knhk.ports.journal import Journal

Progress = Callable[[str, int, int], None]
"""Called now and then with what is being done, how much of it is done, and how much there is."""
LOCKED_ROW: Final = -1
"""In the place of a payload's slot: the row that begins at this receipt is encrypted, and its key is not at hand."""
ERASED_ROW: Final = -2
"""The same, and its key was destroyed."""


class JournalScanner(Protocol):
    """Plain iterators over everything that is stored, in the order of the keys; all raise Corrupt on damaged data."""

    def partitions(self) -> list[int]:
        """The partitions that have blocks, ascending."""
        ...

    def scan_receipts(self, partition: int | None = None) -> Iterator[tuple[int, list[Sealed]]]:
        """Each run's id with all of its receipts in order, the runs by partition and age."""
        ...

    def scan_blocks(self, partition: int | None = None) -> Iterator[SignedBlock]:
        """The blocks by partition and height."""
        ...

    def scan_block_receipts(self, partition: int) -> Iterator[tuple[SignedBlock, list[Sealed] | Corrupt]]:
        """Each block of a partition with its receipts in leaf order, or why they cannot be read.

        They are fewer than the block's count if some are missing.
        """
        ...

    def scan_payloads(self, partition: int | None = None) -> Iterator[tuple[int, int, int, bytes]]:
        """(workflow id, seq, slot, bytes) of each payload, the runs in the order of `scan_receipts`.

        A row that cannot be opened is one entry, with one of the above as its slot and no bytes.
        """
        ...

    def prune_records(self) -> Iterator[SignedRecord]:
        """What was pruned, by partition and number."""
        ...

    def verify_files(self) -> int:
        """Read every stored byte and check its checksums; the number of entries that were read."""
        ...


class ScannedJournal(Journal, Protocol):
    """A store that can be verified as a whole."""

    def scanner(self) -> JournalScanner:
        """Iterators over everything; close the store only when they are done."""
        ...

    async def close(self) -> None:
        """Release everything."""
        ...
