"""Care of a store in PostgreSQL while it is in use: what rows.RowStore says, on connections of the store's pools.

What is read and what is written of it are one transaction, in which the code of others runs in a thread. It locks the
owner's row in a way that lets commits through and keeps a new owner waiting.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from knhk.domain.errors import Fenced
from knhk.persistence.postgres_connections import Connection, Connections
from knhk.persistence.postgres_rows import PostgresRows, statements
from knhk.persistence.postgres_tables import Read
from knhk.persistence.rows import Changes, Found, Rows

# Plans are kept, and one that is made while a table is empty would read all of it for ever: of what is left to the
# planner here, a join looks each row up in an index.
_BY_INDEX: Final = "".join(
    f"{', ' if at else 'SELECT '}set_config('enable_{way}', 'off', true)"
    for at, way in enumerate(("seqscan", "hashjoin", "mergejoin"))
)
_OWNED: Final = "SELECT 1 FROM partitions WHERE partition = $1 AND epoch = $2 FOR KEY SHARE"
_NO_LIMIT_S: Final = 1e6
_TABLES_OF: Final = {
    "receipts": ("receipts",),
    "payloads": ("payloads",),
    "index": ("descriptors", "claims"),
    "runs": ("projections",),
}


async def look(connections: Connections, read: Callable[[Rows], Found]) -> Found:
    """What a function reads, all of it in one snapshot. Raises what postgres_errors.translated says."""
    async with (
        connections.reading("looking") as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(_BY_INDEX)
        return await asyncio.to_thread(read, PostgresRows(_on(connection)))


async def change(connections: Connections, partition: int, epoch: int, build: Callable[[Rows, Changes], None]) -> None:
    """Write what `build` makes. Raises Fenced if the epoch is not the partition's present one."""
    async with connections.writing("changing rows") as connection, connection.transaction():
        if not await connection.fetchval(_OWNED, partition, epoch):
            raise Fenced(f"partition {partition}: epoch {epoch} may not change rows")
        await connection.execute(_BY_INDEX)
        changes = Changes()
        await asyncio.to_thread(build, PostgresRows(_on(connection)), changes)
        for query, given in statements(changes):
            await connection.execute(query, *given)


async def vacuum(connections: Connections, families: Sequence[str]) -> None:
    """Have PostgreSQL use the space of deleted and replaced rows again."""
    tables = [table for family in families for table in _TABLES_OF.get(family, ())]
    async with connections.writing("vacuuming") as connection:
        for table in tables:
            await connection.execute(f"VACUUM {table}", timeout=_NO_LIMIT_S)


def pooled(connections: Connections) -> Read:
    """Queries from another thread, each on any connection, to be made in a thread beside the running loop."""
    loop = asyncio.get_running_loop()

    def read(query: str, *given: Any) -> Sequence[Any]:
        return asyncio.run_coroutine_threadsafe(connections.read("reading rows", query, *given), loop).result()

    return read


def _on(connection: Connection) -> Read:
    loop = asyncio.get_running_loop()

    def read(query: str, *given: Any) -> Sequence[Any]:
        return asyncio.run_coroutine_threadsafe(connection.fetch(query, *given), loop).result()

    return read
