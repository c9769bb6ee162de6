"""Filling an empty database with the rows of a data directory: after a restore, and on the way to a cluster.

All of it is one transaction, so that a process which dies leaves the database as empty as it was.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final

import asyncpg

from knhk.domain.errors import Conflict
from knhk.persistence import postgres_schema
from knhk.persistence.fencing import Tip
from knhk.persistence.postgres_connections import connect
from knhk.persistence.postgres_errors import FAILURES, translated
from knhk.persistence.postgres_options import PostgresOptions
from knhk.persistence.postgres_rows import statements
from knhk.persistence.rocksdb_keys import FAMILIES, FORMAT_KEY, WRITER_KEY
from knhk.persistence.rows import Changes, Row, Rows
from knhk.persistence.scanner import Progress

_NO_LIMIT_S: Final = 1e6
_ROWS: Final = 1000
_HEAD: Final = "UPDATE partitions SET height = $2, block_hash = $3 WHERE partition = $1"
_EMPTY: Final = "SELECT NOT EXISTS (SELECT FROM partitions) AND NOT EXISTS (SELECT FROM blocks)"
_OF_A_DIRECTORY: Final = (FORMAT_KEY, WRITER_KEY)


async def require_empty(options: PostgresOptions) -> None:
    """Make the tables if there are none. Raises Conflict if the database has a journal."""
    connection = await _connected(options)
    try:
        await _refuse_unless_empty(connection, options)
    finally:
        connection.terminate()


async def load(options: PostgresOptions, rows: Rows, heads: dict[int, Tip], progress: Progress) -> int:
    """Write all rows, and the head of each partition; how many rows. Raises Conflict if the database has a journal."""
    connection = await _connected(options)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE partitions IN EXCLUSIVE MODE")
            await _refuse_unless_empty(connection, options)
            total, count = sum(map(rows.estimated_rows, FAMILIES)), 0
            stored = _all_of(rows)
            while page := list(islice(stored, _ROWS)):
                changes = Changes()
                for family, key, row in page:
                    changes.put(family, key, row)
                for query, given in statements(changes):
                    await connection.execute(query, *given, timeout=_NO_LIMIT_S)
                count += len(page)
                progress("rows", count, max(total, count))
            for partition, tip in heads.items():
                await connection.execute(_HEAD, partition, tip.height, tip.hash)
        await connection.execute("ANALYZE", timeout=_NO_LIMIT_S)
    except FAILURES as error:
        raise translated(error, options.name, "loading") from error
    finally:
        connection.terminate()
    return count


def _all_of(rows: Rows) -> Iterator[Row]:
    for family in FAMILIES:
        for key, row in rows.scan(family, b"", None):
            if family != "meta" or key not in _OF_A_DIRECTORY:
                yield family, key, row


async def _connected(options: PostgresOptions) -> "asyncpg.Connection[asyncpg.Record]":
    try:
        connection = await connect(options, "read-write")
        try:
            await postgres_schema.migrate(connection, options.schema)
        except BaseException:
            connection.terminate()
            raise
    except FAILURES as error:
        raise translated(error, options.name, "opening", opening=True) from error
    return connection


async def _refuse_unless_empty(connection: "asyncpg.Connection[asyncpg.Record]", options: PostgresOptions) -> None:
    if not await connection.fetchval(_EMPTY):
        raise Conflict(
            f"{options.name} has a journal in schema {options.schema!r}, and a restore replaces nothing there",
            hint="Keep the old one and restore into another schema (persistence.postgres.schema_name) or database, "
            "or make room for it: ALTER SCHEMA knhk RENAME TO knhk_before.",
        )
