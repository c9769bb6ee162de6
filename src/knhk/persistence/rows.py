"""The rows of a store by column family and key, whatever keeps them; rocksdb_keys.py says what the keys are.

Each store has the same rows, in the same bytes. So what cares for a store, verifies it, ships or copies it is written
once, for rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from knhk.persistence.cipher import Cipher
from knhk.ports.environment import PublicKey

Found = TypeVar("Found")
Row = tuple[str, bytes, bytes]
"""Column family, key and value."""


class Rows(Protocol):
    """Reading rows, in any thread."""

    def get(self, family: str, key: bytes) -> bytes | None:
        """One row."""
        ...

    def get_many(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows of these keys, in their order."""
        ...

    def scan(self, family: str, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """The rows with `start <= key < end`, ascending; to the end of the column family if `end` is None."""
        ...

    def estimated_rows(self, family: str) -> int:
        """About how many rows a column family has."""
        ...


class Changes:
    """What is to be written at once: all of it or nothing. What comes later counts, where a key comes twice."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], bytes | None] = {}
        """By column family and key; None deletes."""
        self.replaced: dict[tuple[str, bytes], bytes] = {}
        """What rows must still be to be set. A store in which nothing can come in between need not look."""

    def put(self, family: str, key: bytes, row: bytes) -> None:
        """Set a row."""
        self.rows[family, key] = row

    def replace(self, family: str, key: bytes, old: bytes, row: bytes) -> None:
        """Set a row if it is still the one that was read. Whether it was, nobody is told."""
        self.replaced[family, key] = old
        self.rows[family, key] = row

    def delete(self, family: str, key: bytes) -> None:
        """Delete a row, if it is there."""
        self.rows[family, key] = None


class RowStore(Protocol):
    """A store whose rows are cared for while it is in use."""

    @property
    def cipher(self) -> Cipher:
        """What opens and seals its rows."""
        ...

    async def look(self, read: Callable[[Rows], Found]) -> Found:
        """What a function reads, all of it at one time."""
        ...

    async def change(self, build: Callable[[Rows, Changes], None], *, durable: bool = False) -> None:
        """Write what `build` makes of what is there, all of it or nothing. Raises Fenced if this process does not own
        the journal any more."""
        ...

    async def compact(self, families: Sequence[str]) -> None:
        """Have what was replaced or deleted leave the disk, as far as the store can."""
        ...

    async def note_ring(self) -> None:
        """Remember which key ring encrypts the store, and its newest generation."""
        ...

    async def keys(self) -> list[PublicKey]:
        """As in ports.journal.Journal."""
        ...

    def statistics(self) -> dict[str, float]:
        """As in ports.storage.Storage."""
        ...

    def watch_descriptors(self) -> set[bytes] | None:
        """A set that gets the digests of the descriptors that are committed from now on, until `forget_descriptors`.

        None if the store cannot tell in time, so that no descriptor may be deleted.
        """
        ...

    def forget_descriptors(self) -> None:
        """End `watch_descriptors`."""
        ...
