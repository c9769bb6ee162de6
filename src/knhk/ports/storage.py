"""Projections kept in the store, and the care of the store itself."""

from pathlib import Path
from typing import Protocol

from knhk.domain.histogram import Histogram


class Projections(Protocol):
    """Rows of folds, each fold a namespace of its own, with the height of the last block that is folded in.

    Rows can be lost without harm: the cursor is stored with them in one atomic write, so that a fold goes on from where
    its rows stand. Keys and values are bytes; keys sort bytewise.
    """

    async def cursor(self, fold: str) -> int:
        """Height of the last block that the fold's rows contain; -1 before the first."""
        ...

    async def store(self, fold: str, rows: dict[bytes, bytes | None], cursor: int) -> None:
        """Write rows (None deletes) and the cursor atomically, not necessarily durably."""
        ...

    async def row(self, fold: str, key: bytes) -> bytes | None:
        """One row."""
        ...

    async def rows(
        self, fold: str, prefix: bytes, *, before: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        """Up to `limit` rows whose key starts with `prefix` and is less than `before`, greatest key first."""
        ...


class Storage(Protocol):
    """The care of the store."""

    async def checkpoint(self, target: Path) -> int:
        """Write a consistent copy of everything committed to a new directory; the height of partition 0 in it.

        Raises Conflict if the target exists.
        """
        ...

    def free_bytes(self) -> int:
        """Free space where the store writes."""
        ...

    def statistics(self) -> dict[str, float]:
        """Figures of the store by metric-like name, such as `wal_bytes` or `block_cache_bytes`."""
        ...

    def histograms(self) -> dict[str, Histogram]:
        """Distributions by metric-like name, such as `fsync_seconds`."""
        ...

    async def close(self) -> None:
        """Flush and release everything. The store cannot be used afterwards."""
        ...
