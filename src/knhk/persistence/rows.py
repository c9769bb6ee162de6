"""The rows of a store by column family and key, whatever keeps them; rocksdb_keys.py says what the keys are.

Each store has the same rows, in the same bytes. So what cares for a store, verifies it, ships or copies it is written
once, for rows.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

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

    def put(self, family: str, key: bytes, row: bytes) -> None:
        """Set a row."""
        self.rows[family, key] = row

    def delete(self, family: str, key: bytes) -> None:
        """Delete a row, if it is there."""
        self.rows[family, key] = None
