"""Rows of projections in the column family `runs`: implements ports.storage.Projections for the store."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import islice

from rocksdict import WriteBatch

from knhk.persistence.cipher import Cipher, in_clear
from knhk.persistence.rocksdb_database import Database
from knhk.persistence.rocksdb_keys import CURSOR, NUMBER, after, row_prefix
from knhk.persistence.wal_writer import WalWriter


class ProjectionRows(ABC):
    """What the store does for folds; how it writes is the store's own."""

    _database: Database
    cipher: Cipher

    @abstractmethod
    async def _write(self, batch: Callable[[], WriteBatch]) -> None: ...

    @abstractmethod
    def _require_writer(self) -> WalWriter: ...

    async def cursor(self, fold: str) -> int:
        raw = self._database.get("runs", CURSOR + fold.encode())
        return -1 if raw is None else NUMBER.unpack(raw)[0]

    async def store(self, fold: str, rows: dict[bytes, bytes | None], cursor: int) -> None:
        prefix = row_prefix(fold)

        def batch() -> WriteBatch:
            made = WriteBatch(raw_mode=True)
            runs, sealer = self._database.handles["runs"], self.cipher.sealer()
            for name, value in rows.items():
                key = prefix + name
                if value is None:
                    made.delete(key, runs)
                elif sealer is None or not value:
                    made.put(key, in_clear(value), runs)
                else:
                    made.put(key, sealer.seal("runs", key, value), runs)
            if cursor >= 0:
                made.put(CURSOR + fold.encode(), NUMBER.pack(cursor), runs)
            else:
                made.delete(CURSOR + fold.encode(), runs)  # as before the first block
            return made

        self._require_writer()
        await self._write(batch)

    async def row(self, fold: str, key: bytes) -> bytes | None:
        full = row_prefix(fold) + key
        raw = self._database.get("runs", full)
        return None if raw is None else self.cipher.open("runs", full, raw)

    async def rows(
        self, fold: str, prefix: bytes, *, before: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        fold_prefix = row_prefix(fold)
        start = fold_prefix + prefix
        end = after(start)
        if before is not None:
            end = min(end, fold_prefix + before)
        rows = islice(self._database.scan_back("runs", start, end), limit)
        return [(key[len(fold_prefix) :], self.cipher.open("runs", key, value)) for key, value in rows]
