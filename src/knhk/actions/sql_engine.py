"""SQLAlchemy as the `sql` action uses it: engines, transactions with a time limit, and the table of effects.

Imported when a step first needs a database.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from knhk.actions.schema import to_plain

EFFECTS: Final = Table(
    "knhk_effects",
    MetaData(),
    Column("effect_key", Text, primary_key=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("result", Text, nullable=False),
)
_READS: Final = "knhk_reads"
_OPCODES_A_LOOK: Final = 10_000
_MILLISECOND: Final = 1_000_000


def new_engine(url: str, pool_size: int) -> Engine:
    """An engine whose messages never show values. Raises ArgumentError or ModuleNotFoundError for a wrong URL."""
    engine = create_engine(
        url, pool_size=pool_size, max_overflow=0, pool_pre_ping=True, pool_recycle=1800, hide_parameters=True
    )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def transaction(engine: Engine, timeout_ns: int, *, read_only: bool) -> Iterator[Connection]:
    """A transaction that is committed at the end of the block, and broken off by the database when time is up."""
    _ensure_effects(engine, needed=not read_only)
    with engine.connect() as plain_connection:
        match engine.dialect.name:
            case "sqlite":
                with _sqlite(plain_connection, timeout_ns, read_only) as connection, connection.begin():
                    yield connection
            case "postgresql":
                connection = plain_connection.execution_options(postgresql_readonly=read_only)
                with connection.begin():
                    limit = max(1, timeout_ns // _MILLISECOND)
                    connection.execute(text(f"SET LOCAL statement_timeout = {limit}"))
                    connection.execute(text(f"SET LOCAL lock_timeout = {limit}"))
                    yield connection
            case _:
                with plain_connection.begin():
                    yield plain_connection


def claim(connection: Connection, key: str, now_ns: int) -> str | None:
    """Take the key in this transaction; the result of the one that has it already, once that is committed."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    taken = connection.execute(
        dialect.insert(EFFECTS).values(effect_key=key, at_ns=now_ns, result="").on_conflict_do_nothing(),
        execution_options={"preserve_rowcount": True},
    )
    if taken.rowcount == 1:
        return None
    return str(connection.execute(select(EFFECTS.c.result).where(EFFECTS.c.effect_key == key)).scalar_one())


def keep(connection: Connection, key: str, result: str) -> None:
    """Write down the result beside the key, in the transaction that took it."""
    connection.execute(update(EFFECTS).where(EFFECTS.c.effect_key == key).values(result=result))


def plain(value: Any) -> Any:
    """A value of a row as JSON has it; what it has no form for becomes text."""
    if isinstance(value, memoryview):
        value = bytes(value)
    try:
        return to_plain(value)
    except TypeError:
        return str(value)


_WITH_EFFECTS: Final = WeakSet[Engine]()


def _ensure_effects(engine: Engine, *, needed: bool) -> None:
    """Make the table of effects if it is not there, once per engine; several may try at the same time."""
    if not needed or engine in _WITH_EFFECTS or engine.dialect.name not in ("postgresql", "sqlite"):
        return
    try:
        EFFECTS.create(engine, checkfirst=True)
    except DBAPIError:
        EFFECTS.create(engine, checkfirst=True)  # another one was quicker; if that is not why, it fails again
    _WITH_EFFECTS.add(engine)


def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # sqlite3 would begin transactions by itself, and too late


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: one that began by reading could not wait for another writer.
    reads = connection.get_execution_options().get(_READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


@contextmanager
def _sqlite(connection: Connection, timeout_ns: int, read_only: bool) -> Iterator[Connection]:
    driver: Any = connection.connection.driver_connection
    until_ns = time.perf_counter_ns() + timeout_ns
    driver.execute(f"PRAGMA busy_timeout = {max(1, timeout_ns // _MILLISECOND)}")
    driver.execute(f"PRAGMA query_only = {int(read_only)}")
    driver.set_progress_handler(lambda: time.perf_counter_ns() > until_ns, _OPCODES_A_LOOK)
    try:
        yield connection.execution_options(**{_READS: read_only})
    finally:
        driver.set_progress_handler(None, 0)
