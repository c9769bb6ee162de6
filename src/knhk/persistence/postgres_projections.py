"""Projections of one partition in PostgreSQL: rows that all nodes read and only the partition's owner writes.

The rows of all partitions lie in one namespace, so that lists go over all of them. Each partition has its own cursor:
partition 0 that of the fold's name, as if there were no other, the others `<fold>/<partition>`.
"""

from typing import Final, Protocol

from knhk.domain.errors import Fenced
from knhk.persistence.cipher import Cipher, in_clear
from knhk.persistence.postgres_connections import Connections
from knhk.persistence.rocksdb_keys import row_prefix
from knhk.ports.storage import Projections

_STORE: Final = """
WITH owner AS (
    SELECT partition FROM partitions WHERE partition = $7 AND epoch = $8 FOR KEY SHARE
), changed AS (
    INSERT INTO projections (fold, key, value)
    SELECT $1, t.* FROM owner, unnest($3::bytea[], $4::bytea[]) AS t
    ON CONFLICT (fold, key) DO UPDATE SET value = excluded.value
), deleted AS (
    DELETE FROM projections USING owner WHERE fold = $1 AND key = ANY($5::bytea[])
), folded AS (
    INSERT INTO cursors (fold, height) SELECT $2, $6 FROM owner
    ON CONFLICT (fold) DO UPDATE SET height = excluded.height
)
SELECT set_config('synchronous_commit', 'off', true), (SELECT count(*) FROM owner) AS owned
"""


def sealed(fold: str, rows: dict[bytes, bytes | None], cipher: Cipher) -> dict[bytes, bytes]:
    """The rows that are to be set, as they are stored."""
    sealer, prefix = cipher.sealer(), row_prefix(fold)
    return {
        key: in_clear(value) if sealer is None or not value else sealer.seal("runs", prefix + key, value)
        for key, value in rows.items()
        if value is not None
    }


class Owning(Projections, Protocol):
    """The store of this process."""

    @property
    def cipher(self) -> Cipher:
        """What encrypts its rows."""
        ...

    def epoch_of(self, partition: int) -> int:
        """The epoch in which this process owns a partition."""
        ...


class PartitionProjections:
    """Implements ports.storage.Projections. A former owner's rows are refused with Fenced, as its commits are."""

    def __init__(self, store: Owning, connections: Connections, partition: int) -> None:
        self._store, self._connections, self._partition = store, connections, partition

    async def cursor(self, fold: str) -> int:
        return await self._store.cursor(self._name(fold))

    async def store(self, fold: str, rows: dict[bytes, bytes | None], cursor: int) -> None:
        kept = sealed(fold, rows, self._store.cipher)
        gone = [key for key, value in rows.items() if value is None]
        epoch = self._store.epoch_of(self._partition)
        given = (fold, self._name(fold), list(kept), list(kept.values()), gone, cursor, self._partition, epoch)
        found = await self._connections.write("writing projections", _STORE, *given)
        if found is None or not found["owned"]:
            raise Fenced(f"partition {self._partition}: epoch {epoch} may not write projections")

    async def row(self, fold: str, key: bytes) -> bytes | None:
        return await self._store.row(fold, key)

    async def rows(
        self, fold: str, prefix: bytes, *, before: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        return await self._store.rows(fold, prefix, before=before, limit=limit)

    def _name(self, fold: str) -> str:
        return f"{fold}/{self._partition}" if self._partition else fold
