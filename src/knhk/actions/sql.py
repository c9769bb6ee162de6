"""`sql`: statements against a database that the configuration names. Off until it names one.

Values are bound, never put into the text: an expression inside a statement is refused when the workflow is submitted.

On PostgreSQL and SQLite a step takes effect exactly once. In one transaction with its statements it writes its
idempotency key and its result into the table `knhk_effects`. An attempt that finds the key there, after a crash between
that commit and the step's receipt, or beside a slower attempt, gives that result and does nothing. Elsewhere, and in
`mode: read`, statements run at least once.

Rows that are too many for an output go to a blob, which is durable before that transaction is committed (sql_blobs.py).
"""

import re
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from knhk.actions.blob_streams import PIECE_BYTES, Keep
from knhk.actions.bounds import within
from knhk.actions.parameters import NOT_ALLOWED_CODE, parse, wrong
from knhk.actions.registry import Action, Failed, Invocation, Outcome, RetryLater, Succeeded
from knhk.actions.schema import schema_of
from knhk.actions.sql_blobs import MOST_AT_ONCE, Format, Rows, TooManyRows, bound, values_in, weight_of
from knhk.config import SqlOptions
from knhk.domain.blob import BlobReference
from knhk.domain.plan import ActionTraits
from knhk.ports.blobs import Blobs, NoBlobs

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult, Engine
    from sqlalchemy.exc import SQLAlchemyError

NAME: Final = "sql"
UNAVAILABLE_CODE: Final = "KNHK-SQL-UNAVAILABLE"
STATEMENT_CODE: Final = "KNHK-SQL-STATEMENT"
TOO_LARGE_CODE: Final = "KNHK-SQL-TOO-LARGE"
EXACTLY_ONCE: Final = ("postgresql", "sqlite")
_EXTRAS: Final = {"postgresql": "pip install 'knhk[postgres]'"}
# What may hold any character: strings (E'...' with backslashes), quoted names, comments, PostgreSQL's $tag$ strings.
_OPAQUE: Final = re.compile(
    r"""(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$""",
    re.DOTALL | re.VERBOSE,
)
_ENDS_TRANSACTION: Final = re.compile(
    r"\s*(begin|start|commit|end|rollback|abort|savepoint|release|prepare)\b", re.IGNORECASE
)
# SQLSTATE classes (PostgreSQL, appendix A): connection, rollback, resources, object state, operator, system.
_PASSING_STATES: Final = frozenset({"08", "40", "53", "55", "57", "58"})
_WRONG_IN_SQLITE: Final = ("syntax error", "no such ", "has no column", "readonly database", "incomplete input")
# What PostgreSQL takes for a cursor, which gives rows in portions: nothing that changes anything.
_READS: Final = re.compile(r"\s*(select|values|table|with)\b", re.IGNORECASE)
_CHANGES: Final = re.compile(r"\b(insert|update|delete|merge|into)\b", re.IGNORECASE)
_NO_BLOBS: Final = NoBlobs("this process has no blob area")
Values = dict[str, Any] | list[dict[str, Any]]


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A statement with `:name` for values. A list of values, or a blob of them, runs it once for each of them."""

    statement: str
    values: Values = {}


class SqlParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One statement, or several that are one transaction; on which connection, how long, and what becomes of rows."""

    connection: str
    statement: str | None = None
    values: Values = {}
    statements: list[Statement] = []
    mode: Literal["write", "read"] = "write"
    blob: Keep = "auto"
    format: Format = "jsonl"
    timeout: str | None = None


class Databases:
    """The databases of this process, opened when first used."""

    def __init__(self, options: SqlOptions, blobs: Blobs = _NO_BLOBS) -> None:
        self._options, self._blobs = options, blobs
        self._urls = {one.name: one.url.get_secret_value() for one in options.connections}
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}

    def run(self, invocation: Invocation) -> Outcome:
        """Runs the statements in one transaction and gives their rows."""
        params = parse(invocation, NAME, SqlParams)
        if isinstance(params, Failed):
            return params
        if params.connection not in self._urls:
            known = ", ".join(self._urls) or "none"
            return Failed(NOT_ALLOWED_CODE, f"sql: {params.connection!r} is no connection of `actions.sql`: {known}")
        try:
            statements = _statements(params)
            timeout_ns = within("timeout", params.timeout, self._options.timeout_ns, self._options.timeout_ns)
        except ValueError as error:
            return wrong(NAME, str(error))
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError

        try:
            engine = self._engine(params.connection)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            advice = _EXTRAS.get(_dialect(self._urls[params.connection]), "install the driver of its URL")
            return Failed(STATEMENT_CODE, f"{params.connection}: {type(error).__name__}: {advice}")
        outcome = self._transaction(engine, statements, params, invocation, timeout_ns)
        if isinstance(outcome, Succeeded) and not params.statements:
            return Succeeded(outcome.output[0])
        return Succeeded({"results": outcome.output}) if isinstance(outcome, Succeeded) else outcome

    async def aclose(self) -> None:
        """Close all connections."""
        while self._engines:
            self._engines.popitem()[1].dispose()

    def _engine(self, name: str) -> "Engine":
        from knhk.actions.sql_engine import new_engine

        with self._lock:
            if name not in self._engines:
                self._engines[name] = new_engine(self._urls[name], self._options.pool_size)
            return self._engines[name]

    def _transaction(
        self,
        engine: "Engine",
        statements: list[Statement],
        params: SqlParams,
        invocation: Invocation,
        timeout_ns: int,
    ) -> Outcome:
        from sqlalchemy import exc

        from knhk.actions.sql_engine import transaction

        name, max_rows = params.connection, self._options.max_rows
        work = _Work(
            self._blobs, self._options.max_value_bytes, Rows(self._blobs, params.blob, params.format, max_rows)
        )
        key = invocation.idempotency_key if params.mode == "write" and engine.dialect.name in EXACTLY_ONCE else ""
        try:
            with transaction(engine, timeout_ns, read_only=params.mode == "read") as connection:
                return Succeeded(_once(connection, key, invocation.now_ns, statements, work))
        except ValueError as error:
            return wrong(NAME, str(error))
        except TooManyRows:
            return Failed(TOO_LARGE_CODE, f"{name}: more than {max_rows} rows (`actions.sql.max_rows`)")
        except exc.SQLAlchemyError as error:
            reason = f"{name}: {_reason(error)}"
            return RetryLater(UNAVAILABLE_CODE, reason) if _may_pass(error) else Failed(STATEMENT_CODE, reason)


def _statements(params: SqlParams) -> list[Statement]:
    """What is to be run. Raises ValueError if that is nothing, or would end the transaction."""
    if (params.statement is None) == (not params.statements):
        raise ValueError("give exactly one of `statement` and `statements`")
    if params.statement is None:
        if params.values:
            raise ValueError("`values` belong to `statement`; those of `statements` stand in each of them")
        found = params.statements
    else:
        found = [Statement(params.statement, params.values)]
    for one in found:
        pieces = [piece for piece in _OPAQUE.sub(" x ", one.statement).split(";") if piece.strip(" \t\r\nx")]
        if len(pieces) > 1:
            raise ValueError("one statement at a time; `statements` takes several, as one transaction")
        if any(_ENDS_TRANSACTION.match(piece.replace(" x ", " ")) for piece in pieces):
            raise ValueError("statements that begin or end a transaction are not allowed: a step is one transaction")
    return found


class _Work(NamedTuple):
    """What statements need besides a connection."""

    blobs: Blobs
    max_value_bytes: int
    rows: Rows


def _once(
    connection: "Connection", key: str, now_ns: int, statements: list[Statement], work: _Work
) -> list[dict[str, Any]]:
    """The results, of an earlier attempt with this key if there was one. No key: they are run in any case."""
    from knhk.actions.sql_engine import claim, keep

    if not key:
        return [_result(connection, one, work) for one in statements]
    known = claim(connection, key, now_ns)
    if known is not None:
        return msgspec.json.decode(known, type=list[dict[str, Any]])
    results = [_result(connection, one, work) for one in statements]
    keep(connection, key, msgspec.json.encode(results).decode())
    return results


def _result(connection: "Connection", one: Statement, work: _Work) -> dict[str, Any]:
    from sqlalchemy import text
    from sqlalchemy.exc import ArgumentError

    clause = text(one.statement)
    names = set(clause._bindparams)
    reference = BlobReference.of(one.values)
    if reference is not None:
        portions = values_in(work.blobs, reference, names, work.max_value_bytes)
        return {"rows": [], "row_count": sum(max(connection.execute(clause, some).rowcount, 0) for some in portions)}
    for given in one.values if isinstance(one.values, list) else [one.values]:
        if names != set(given):
            raise ArgumentError(f"the statement takes {sorted(names) or 'no values'}, not {sorted(given) or 'none'}")
    if isinstance(one.values, list) and not one.values:
        return {"rows": [], "row_count": 0}
    done = connection.execute(clause, _bound(one.values, work), execution_options=_options(one, work))
    if not done.returns_rows:
        return {"rows": [], "row_count": max(done.rowcount, 0)}
    columns = list(done.keys())
    with closing(done):
        return work.rows.take(columns, _portions(done, columns))


def _bound(values: Values, work: _Work) -> Values:
    if isinstance(values, list):
        return [{name: bound(work.blobs, value, work.max_value_bytes) for name, value in one.items()} for one in values]
    return {name: bound(work.blobs, value, work.max_value_bytes) for name, value in values.items()}


def _options(one: Statement, work: _Work) -> dict[str, Any]:
    plain = _OPAQUE.sub(" x ", one.statement)
    if not work.rows.streams or not _READS.match(plain) or _CHANGES.search(plain):
        return {}
    return {"stream_results": True, "max_row_buffer": 1}  # `_portions` says how many rows come at once


def _portions(done: "CursorResult[Any]", columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    """The rows, about as many at a time as a piece of a blob has."""
    from knhk.actions.sql_engine import plain

    count = 10
    while rows := done.fetchmany(count):
        portion = [dict(zip(columns, map(plain, row), strict=True)) for row in rows]
        yield portion
        count = max(1, min(MOST_AT_ONCE, 2 * count, PIECE_BYTES * len(portion) // max(1, weight_of(portion))))


def _may_pass(error: "SQLAlchemyError") -> bool:
    """Whether the same statement may succeed later: no connection, a lock, a conflict, no time or no room left."""
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, TimeoutError  # noqa: A004

    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    if isinstance(error, DBAPIError) and state:
        return state[:2] in _PASSING_STATES
    if isinstance(error, OperationalError):
        # SQLite has no class of its own for a statement that is wrong.
        return not any(sign in str(error.orig) for sign in _WRONG_IN_SQLITE)
    return isinstance(error, TimeoutError | InterfaceError)


def _reason(error: Exception) -> str:
    """The first line of what the driver says: further ones may quote values."""
    original = getattr(error, "orig", None) or error
    return f"{type(original).__name__}: {str(original).strip().partition(chr(10))[0]}"[:300]


def _dialect(url: str) -> str:
    return url.partition(":")[0].partition("+")[0]


def action(options: SqlOptions, blobs: Blobs = _NO_BLOBS) -> Action:
    """The action with these databases. It is as good as the least of them."""
    databases = Databases(options, blobs)
    disabled = "" if options.connections else "`actions.sql.connections` names no database"
    everywhere = all(_dialect(one.url.get_secret_value()) in EXACTLY_ONCE for one in options.connections)
    traits = ActionTraits(
        NAME,
        pure=False,
        guarantee="exactly-once" if everywhere else "at-least-once",
        params_schema=schema_of(SqlParams),
        reads_dependencies=False,
        disabled=disabled,
        literal=("statement", "statements.*.statement"),
    )
    about = "runs statements in one transaction; exactly once on PostgreSQL and SQLite"
    return Action(traits, "thread", databases.run, __name__, databases.aclose, about)
