"""JournalScanner over PostgreSQL: cursors in one snapshot, so that a server may go on writing meanwhile.

The iterators are plain, and may be used while an event loop runs: the connection lives in a thread with its own loop.
"""

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Iterator
from typing import Any, Final, TypeVar

import asyncpg
import asyncpg.cursor

from knhk.domain.errors import StorageUnavailable
from knhk.domain.receipt import Sealed, SignedBlock
from knhk.persistence import codec, receipt_rows
from knhk.persistence.block_rows import decode_signed_block
from knhk.persistence.cipher import Cipher
from knhk.persistence.postgres_connections import connect
from knhk.persistence.postgres_errors import FAILURES, translated
from knhk.persistence.postgres_options import PostgresOptions
from knhk.persistence.prune_records import SignedRecord
from knhk.persistence.rocksdb_keys import run_key

_PAGE: Final = 500
_IN_CLEAR: Final = Cipher()
_NO_LIMIT: Final = "SELECT set_config('idle_in_transaction_session_timeout', '0', false)"
_ONE_PARTITION: Final = "($1::integer IS NULL OR partition = $1)"
TABLES: Final = {
    "partitions": "count(block_hash)",
    "blocks": "count(sha256(signed))",
    "receipts": "count(sha256(slice))",
    "payloads": "count(sha256(payloads))",
    "descriptors": "count(sha256(text))",
    "claims": "count(request_digest)",
    "live": "count(*)",
    "timers": "count(*)",
    "signing_keys": "count(raw)",
    "projections": "count(sha256(value))",
    "cursors": "count(*)",
}
"""Every table, and what makes PostgreSQL read all of its bytes and check their pages."""
_Result = TypeVar("_Result")


class PostgresScanner:
    """Sees the journal as it was at the first use of this object."""

    def __init__(self, options: PostgresOptions) -> None:
        self._session = _Session(options)
        self._finish = weakref.finalize(self, self._session.close)

    def partitions(self) -> list[int]:
        return [partition for (partition,) in self.rows("SELECT DISTINCT partition FROM blocks ORDER BY partition")]

    def scan_receipts(self, partition: int | None = None) -> Iterator[tuple[int, list[Sealed]]]:
        current = -1
        receipts: list[Sealed] = []
        query = f"""
            SELECT workflow_id, first_seq, slice FROM receipts WHERE {_ONE_PARTITION}
            ORDER BY partition, workflow_id, first_seq
        """
        for run, seq, raw in self.rows(query, partition):
            if run != current:
                if receipts:
                    yield current, receipts
                current, receipts = run, []
            receipts += receipt_rows.decode(raw, run_key(run, seq), run, _IN_CLEAR)
        if receipts:
            yield current, receipts

    def scan_blocks(self, partition: int | None = None) -> Iterator[SignedBlock]:
        query = f"SELECT partition, height, signed FROM blocks WHERE {_ONE_PARTITION} ORDER BY partition, height"
        for of, height, signed in self.rows(query, partition):
            yield decode_signed_block(signed, of, height)

    def scan_payloads(self, partition: int | None = None) -> Iterator[tuple[int, int, int, bytes]]:
        query = f"""
            SELECT workflow_id, payloads FROM payloads WHERE {_ONE_PARTITION}
            ORDER BY partition, workflow_id, first_seq
        """
        for run, raw in self.rows(query, partition):
            for payload in sorted(codec.decode(raw, run), key=lambda one: (one.seq, one.slot)):
                yield run, payload.seq, payload.slot, payload.raw

    def prune_records(self) -> Iterator[SignedRecord]:
        yield from ()  # nothing is pruned here

    def verify_files(self) -> int:
        return sum(
            count for table, reading in TABLES.items() for (count,) in self.rows(f"SELECT {reading} FROM {table}")
        )

    def rows(self, query: str, *given: Any) -> Iterator[asyncpg.Record]:
        """The rows of any query, page by page. Raises what postgres_errors.translated says."""
        cursor = self._session.call(self._session.declare(query, given))
        while page := self._session.call(self._session.fetch(cursor)):
            yield from page

    def close(self) -> None:
        """End the snapshot. Closing twice is fine, and an object that nobody holds any more closes itself."""
        self._finish()


class _Session:
    """The thread, its loop, and the connection with the open transaction; made at the first call."""

    def __init__(self, options: PostgresOptions) -> None:
        self._options = options
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._closed = False

    def call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Do something in the thread and wait for it."""
        if self._closed:
            work.close()
            raise StorageUnavailable(f"{self._options.name}: the store is closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="knhk-postgres-scan", daemon=True)
            self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except FAILURES as error:
            raise translated(error, self._options.name, "scanning") from error

    def close(self) -> None:
        """End the transaction and the thread."""
        self._closed = True
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(self._end, loop)
            self._thread.join()
            loop.close()

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._connection is not None:
            self._connection.terminate()
        loop.call_soon(loop.call_soon, loop.stop)  # once the transport has closed its socket

    async def declare(self, query: str, given: tuple[Any, ...]) -> "asyncpg.cursor.Cursor[asyncpg.Record]":
        """A cursor in the snapshot."""
        if self._connection is None:
            self._connection = await connect(self._options, "any")
            await self._connection.execute(_NO_LIMIT)
            await self._connection.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return await self._connection.cursor(query, *given)

    async def fetch(self, cursor: "asyncpg.cursor.Cursor[asyncpg.Record]") -> list[asyncpg.Record]:
        """The next rows of a cursor; empty at its end."""
        return await cursor.fetch(_PAGE, timeout=None)
