"""Connections to PostgreSQL: made when they are needed, thrown away when they fail, never held between two statements.

Every statement is its own transaction, so that a process that is stopped in the middle of anything leaves no lock
behind. Reads are tried a second time on a new connection if theirs turns out to be dead; writes are not.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from knhk.domain.errors import InvalidConfiguration, KnhkError, StorageUnavailable
from knhk.persistence import postgres_schema
from knhk.persistence.postgres_errors import CONNECTION_LOST, FAILURES, translated
from knhk.persistence.postgres_options import PostgresOptions
from knhk.persistence.rocksdb_keys import RING_KEY

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Target = Literal["any", "primary", "read-write"]

CONNECT_LIMIT_S: Final = 5.0
_IDLE_IN_TRANSACTION: Final = "10s"
_MANY_QUERIES: Final = 1_000_000_000
_RING: Final = "SELECT value FROM meta WHERE key = $1"
_SET_UP: Final = """
SELECT set_config('search_path', $1, false),
       set_config('idle_in_transaction_session_timeout', $2, false),
       set_config('plan_cache_mode', 'force_generic_plan', false),
       CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', false) END,
       current_setting('fsync', true) AS fsync
"""


class Connections:
    """Two pools, one for reading and one for writing, on the event loop that first uses them.

    A new connection for writing goes to a host that accepts writes, one for reading to any that is no standby. With
    `read_only` there is one pool, and a standby will do.
    """

    def __init__(
        self, options: PostgresOptions, *, read_only: bool = False, check: Callable[[bytes | None], None] | None = None
    ) -> None:
        """`check` is given what the store remembers of its key ring, when it is opened, and may refuse it."""
        self.options = options
        self._read_only, self._check = read_only, check
        self._readers: asyncpg.Pool[asyncpg.Record] | None = None
        self._writers: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()
        self._is_open = self._closed = False
        self.reconnects = 0

    async def read(self, doing: str, query: str, *given: Any) -> list[asyncpg.Record]:
        """The rows of a query. Raises what postgres_errors.translated says."""
        try:
            async with self._connection(doing) as connection:
                return await connection.fetch(query, *given)
        except StorageUnavailable:
            if self._closed:
                raise
        self.reconnects += 1
        async with self._connection(doing) as connection:
            return await connection.fetch(query, *given)

    async def write(self, doing: str, query: str, *given: Any) -> asyncpg.Record | None:
        """The first row of a statement that changes something."""
        async with self._connection(doing, writing=True) as connection:
            return await connection.fetchrow(query, *given)

    @asynccontextmanager
    async def reading(self, doing: str) -> AsyncIterator[Connection]:
        """A connection for several queries."""
        async with self._connection(doing) as connection:
            yield connection

    @asynccontextmanager
    async def writing(self, doing: str) -> AsyncIterator[Connection]:
        """A connection for several statements; its transaction must not be held while anything else is awaited."""
        async with self._connection(doing, writing=True) as connection:
            yield connection

    async def renew(self) -> None:
        """Have every connection made anew: those that exist may lead to a server that is no longer the right one."""
        for pool in (self._readers, self._writers):
            if pool is not None:
                await pool.expire_connections()

    async def open(self) -> None:
        """Connect, and make or check the tables. Happens by itself before the first statement."""
        if not self._is_open:
            async with self._opening:
                await self._open_once()

    async def _open_once(self) -> None:
        if self._is_open:
            return
        if self._closed:
            raise StorageUnavailable(f"{self.options.name}: the store is closed")
        await self._prepare()
        if self._read_only:
            self._readers = await self._pool("any")
        else:
            self._writers = await self._pool("read-write")
            self._readers = await self._pool("primary")
        self._is_open = True

    async def close(self) -> None:
        """Close all connections. Closing twice is fine."""
        self._is_open, self._closed = False, True
        pools = [pool for pool in (self._readers, self._writers) if pool is not None]
        self._readers = self._writers = None
        for pool in pools:
            pool.terminate()

    def statistics(self) -> dict[str, float]:
        """Open connections, and how often one turned out to be dead."""
        pools = [pool for pool in (self._readers, self._writers) if pool is not None]
        return {
            "connections": float(sum(pool.get_size() for pool in pools)),
            "connections_idle": float(sum(pool.get_idle_size() for pool in pools)),
            "reconnects_total": float(self.reconnects),
        }

    @asynccontextmanager
    async def _connection(self, doing: str, *, writing: bool = False) -> AsyncIterator[Connection]:
        await self.open()
        pool = self._writers if writing else self._readers
        if pool is None:
            raise StorageUnavailable(f"{self.options.name} is {'closed' if self._closed else 'open for reading only'}")
        try:
            async with pool.acquire(timeout=self.options.timeout_s) as connection:
                try:
                    yield connection
                except BaseException as error:
                    if isinstance(error, CONNECTION_LOST) or not isinstance(error, (asyncpg.PostgresError, KnhkError)):
                        connection.terminate()  # what it is doing is unknown, and waiting for it could take for ever
                    raise
        except FAILURES as error:
            raise translated(error, self.options.name, doing) from error

    async def _pool(self, target: Target) -> "asyncpg.Pool[asyncpg.Record]":
        async def connecting(*_given: Any, **_also: Any) -> "asyncpg.Connection[asyncpg.Record]":
            return await connect(self.options, target)

        return await asyncpg.create_pool(
            min_size=0,
            max_size=self.options.connections,
            max_queries=_MANY_QUERIES,
            connect=connecting,
            reset=_nothing,
        )

    async def _prepare(self) -> None:
        """Make or check the tables on a connection of its own."""
        where = self.options.name
        try:
            connection = await connect(self.options, "any" if self._read_only else "read-write")
            try:
                if self._read_only:
                    await postgres_schema.check(connection, self.options.schema)
                else:
                    await postgres_schema.migrate(connection, self.options.schema)
                if self._check is not None:
                    self._check(await connection.fetchval(_RING, RING_KEY))
            finally:
                connection.terminate()
        except FAILURES as error:
            raise translated(error, where, "opening", opening=True) from error


async def connect(options: PostgresOptions, target: Target) -> "asyncpg.Connection[asyncpg.Record]":
    """One connection, set up. Raises asyncpg's errors, and InvalidConfiguration if the server does not sync."""
    connection = await asyncpg.connect(
        options.url,
        timeout=CONNECT_LIMIT_S,
        command_timeout=options.timeout_s,
        server_settings={"application_name": "knhk"},
        target_session_attrs=SessionAttribute(target),
    )
    try:
        found = await connection.fetchrow(_SET_UP, options.schema, _IDLE_IN_TRANSACTION)
        if found is not None and found["fsync"] == "off":
            raise InvalidConfiguration(
                f"{options.name} runs with fsync = off: it would lose what it has acknowledged",
                hint="Set fsync = on in PostgreSQL's configuration.",
            )
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _nothing(_connection: Any) -> None:
    """Statements leave no state in a session, so that a connection needs no cleaning between two of them."""
