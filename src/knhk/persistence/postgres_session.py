"""Reading PostgreSQL without an event loop, or beside one: a connection in a thread with a loop of its own.

All queries see one snapshot, that of the first, so that a server may go on writing meanwhile.
"""

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

import asyncpg

from knhk.domain.errors import StorageUnavailable
from knhk.persistence.postgres_connections import connect
from knhk.persistence.postgres_errors import FAILURES, translated
from knhk.persistence.postgres_options import PostgresOptions

_NO_LIMIT: Final = "SELECT set_config('idle_in_transaction_session_timeout', '0', false)"
_BEGIN: Final = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
_NEVER_S: Final = 1e6
_Result = TypeVar("_Result")


class Session:
    """The thread, its loop, and the connection with the open transaction; made at the first query."""

    def __init__(self, options: PostgresOptions) -> None:
        self._options = options
        self._thread = _Thread()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._finish = weakref.finalize(self, self._thread.close)

    def read(self, query: str, *given: Any) -> Sequence[asyncpg.Record]:
        """The rows of a query. Raises what postgres_errors.translated says."""
        try:
            return self._thread.call(self._fetch(query, given))
        except FAILURES as error:
            raise translated(error, self._options.name, "scanning") from error

    def close(self) -> None:
        """End the snapshot. Closing twice is fine, and an object that nobody holds any more closes itself."""
        self._finish()

    async def _fetch(self, query: str, given: tuple[Any, ...]) -> Sequence[asyncpg.Record]:
        if self._connection is None:
            self._connection = await connect(self._options, "any")
            self._thread.at_end = self._connection.terminate
            await self._connection.execute(_NO_LIMIT)
            await self._connection.execute(_BEGIN)
        return await self._connection.fetch(query, *given, timeout=_NEVER_S)


class _Thread:
    """A thread with an event loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self.at_end: Any = None

    def call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Do something in the thread and wait for it."""
        if self._closed:
            work.close()
            raise StorageUnavailable("the store is closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="knhk-postgres-scan", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """End it."""
        self._closed = True
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(self._end, loop)
            self._thread.join()
            loop.close()

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.at_end is not None:
            self.at_end()
        loop.call_soon(loop.call_soon, loop.stop)  # once the transport has closed its socket
