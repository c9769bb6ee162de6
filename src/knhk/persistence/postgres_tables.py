"""The tables of PostgreSQL as column families: which keys are where, and how they are read and written.

A table holds the keys of a family that begin with a prefix, without it. In most of them a key is a few numbers or a
string of bytes, and pages of rows are read in the order of the primary key; the others are small and read whole.
"""

from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Any, Final, Protocol

import msgspec

from knhk.persistence.rocksdb_keys import BLOCK, NUMBER, PARTITION, RUN, RUN_PREFIX, TIMER
from knhk.ports.environment import PublicKey
from knhk.ports.journal import Claim

Read = Callable[..., Sequence[Any]]
"""Runs a query with what is given to it; the rows that it answers. Blocks."""
Statement = tuple[str, tuple[Any, ...]]
"""A query and what is given to it."""
PAGE: Final = 500
_LAST: Final = (1 << 63) - 1
_ENCODER: Final = msgspec.msgpack.Encoder()
_CLAIM: Final = msgspec.msgpack.Decoder(Claim)
_KEY: Final = msgspec.msgpack.Decoder(PublicKey)


class Table(Protocol):
    """The rows of one table. Keys are without the table's prefix."""

    name: str

    def get(self, read: Read, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(self, read: Read, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]: ...

    def put(self, rows: Sequence[tuple[bytes, bytes]]) -> Statement:
        """The statement that sets rows, which are one at least and of different keys."""
        ...

    def replace(self, rows: Sequence[tuple[bytes, bytes, bytes]]) -> Statement:
        """The statement that sets rows (key, old, new) which are still what they were."""
        ...

    def delete(self, keys: Sequence[bytes]) -> Statement: ...


class Numbered:
    """Keys of numbers. `value` is the column of the row; empty if rows are."""

    def __init__(self, name: str, columns: Sequence[str], layout: Struct, value: str = "") -> None:
        self.name, self._layout, self._value = name, layout, value
        self._columns, self._list = columns, ", ".join(columns)
        self._given = ", ".join(f"${at}::bigint" for at in range(1, len(columns) + 1))
        self._arrays = ", ".join(f"${at}::bigint[]" for at in range(1, len(columns) + 1))
        self._same = " AND ".join(f"{name}.{column} = k.{column}" for column in columns)
        self._row = f", {value}" if value else ""

    def get(self, read: Read, keys: Sequence[bytes]) -> list[bytes | None]:
        query = f"""
            SELECT k.number{self._row} FROM unnest({self._arrays}) WITH ORDINALITY AS k({self._list}, number),
            LATERAL (SELECT {self._value or "true"} FROM {self.name} WHERE {self._same} OFFSET 0) AS stored
        """
        found = {one[0]: one[1] if self._value else b"" for one in read(query, *self._numbers(keys))}
        return [found.get(number) for number in range(1, len(keys) + 1)]

    def scan(self, read: Read, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        lower, passed = self._bound(start)
        upper, included = ([], False) if end is None else self._bound(end)
        count = len(self._columns)
        until = ", ".join(f"${at}::bigint" for at in range(count + 1, 2 * count + 1))
        below = "" if end is None else f"AND ({self._list}) {'<=' if included else '<'} ({until})"
        while True:
            query = f"""
                SELECT {self._list}{self._row} FROM {self.name}
                WHERE ({self._list}) {">" if passed else ">="} ({self._given}) {below}
                ORDER BY {self._list} LIMIT {PAGE}
            """
            page = read(query, *lower, *upper)
            for one in page:
                yield self._layout.pack(*one[:count]), one[count] if self._value else b""
            if len(page) < PAGE:
                return
            lower, passed = list(page[-1][:count]), True

    def put(self, rows: Sequence[tuple[bytes, bytes]]) -> Statement:
        arrays = self._numbers([key for key, _ in rows])
        if not self._value:
            query = (
                f"INSERT INTO {self.name} ({self._list}) SELECT * FROM unnest({self._arrays}) ON CONFLICT DO NOTHING"
            )
            return query, tuple(arrays)
        query = f"""
            INSERT INTO {self.name} ({self._list}, {self._value})
            SELECT * FROM unnest({self._arrays}, ${len(arrays) + 1}::bytea[])
            ON CONFLICT ({self._list}) DO UPDATE SET {self._value} = excluded.{self._value}
        """
        return query, (*arrays, [row for _, row in rows])

    def replace(self, rows: Sequence[tuple[bytes, bytes, bytes]]) -> Statement:
        arrays = self._numbers([key for key, _, _ in rows])
        count, value = len(arrays), self._value
        query = f"""
            UPDATE {self.name} SET {value} = k.new
            FROM unnest({self._arrays}, ${count + 1}::bytea[], ${count + 2}::bytea[]) AS k({self._list}, old, new)
            WHERE {self._same} AND {self.name}.{value} = k.old
        """
        return query, (*arrays, [old for _, old, _ in rows], [row for _, _, row in rows])

    def delete(self, keys: Sequence[bytes]) -> Statement:
        query = f"DELETE FROM {self.name} USING unnest({self._arrays}) AS k({self._list}) WHERE {self._same}"
        return query, tuple(self._numbers(keys))

    def _numbers(self, keys: Sequence[bytes]) -> list[list[int]]:
        numbers = [self._layout.unpack(key) for key in keys]
        return [[one[at] for one in numbers] for at in range(len(self._columns))]

    def _bound(self, key: bytes) -> tuple[list[int], bool]:
        """The numbers of a bound, and whether it is greater than the key that they are."""
        size = self._layout.size
        numbers = self._layout.unpack(key[:size].ljust(size, b"\x00"))
        return [min(one, _LAST) for one in numbers], len(key) > size


class Named:
    """Keys that are one column of bytes. `row` makes a row of the other columns, `columns_of` them of a row."""

    def __init__(
        self,
        name: str,
        key: str,
        columns: dict[str, str],
        row: Callable[[Sequence[Any]], bytes],
        columns_of: Callable[[bytes], Sequence[Any]],
        given: dict[str, Any] | None = None,
    ) -> None:
        """`columns` are the other columns and their types; `given` those that have the same value in all rows."""
        self.name, self._key, self._columns, self._row, self._columns_of = name, key, columns, row, columns_of
        self._given = given or {}
        self._list = ", ".join((key, *columns))
        self._where = "".join(f" AND {column} = ${at}" for at, column in enumerate(self._given, 1))
        self._next = len(self._given) + 1

    def get(self, read: Read, keys: Sequence[bytes]) -> list[bytes | None]:
        query = f"SELECT {self._list} FROM {self.name} WHERE {self._key} = ANY(${self._next}::bytea[]){self._where}"
        found = {one[0]: self._row(one) for one in read(query, *self._given.values(), list(keys))}
        return [found.get(key) for key in keys]

    def scan(self, read: Read, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        lower, passed = start, False
        below = "" if end is None else f" AND {self._key} < ${self._next + 1}::bytea"
        upper = () if end is None else (end,)
        while True:
            query = f"""
                SELECT {self._list} FROM {self.name}
                WHERE {self._key} {">" if passed else ">="} ${self._next}::bytea{below}{self._where}
                ORDER BY {", ".join((*self._given, self._key))} LIMIT {PAGE}
            """
            page = read(query, *self._given.values(), lower, *upper)
            for one in page:
                yield one[0], self._row(one)
            if len(page) < PAGE:
                return
            lower, passed = page[-1][0], True

    def put(self, rows: Sequence[tuple[bytes, bytes]]) -> Statement:
        columns = [self._columns_of(row) for _, row in rows]
        arrays = [[key for key, _ in rows], *([one[at] for one in columns] for at in range(len(self._columns)))]
        types = ("bytea", *self._columns.values())
        unnest = ", ".join(f"${at}::{kind}[]" for at, kind in enumerate(types, self._next))
        fixed = "".join(f"${at}, " for at in range(1, self._next))
        into = ", ".join((*self._given, self._list))
        query = f"""
            INSERT INTO {self.name} ({into}) SELECT {fixed}t.* FROM unnest({unnest}) AS t
            ON CONFLICT ({", ".join((*self._given, self._key))})
            DO UPDATE SET {", ".join(f"{column} = excluded.{column}" for column in self._columns)}
        """
        return query, (*self._given.values(), *arrays)

    def replace(self, rows: Sequence[tuple[bytes, bytes, bytes]]) -> Statement:
        (value,) = self._columns
        unnest = ", ".join(f"${at}::bytea[]" for at in range(self._next, self._next + 3))
        query = f"""
            UPDATE {self.name} SET {value} = k.new FROM unnest({unnest}) AS k(key, old, new)
            WHERE {self.name}.{self._key} = k.key AND {self.name}.{value} = k.old{self._where}
        """
        return query, (*self._given.values(), *map(list, zip(*rows, strict=True)))

    def delete(self, keys: Sequence[bytes]) -> Statement:
        query = f"DELETE FROM {self.name} WHERE {self._key} = ANY(${self._next}::bytea[]){self._where}"
        return query, (*self._given.values(), list(keys))


class Small:
    """A table that is read whole. The functions turn the primary key into a key and back, and the others into a row."""

    def __init__(
        self,
        name: str,
        primary: tuple[str, str],
        columns: dict[str, str],
        *,
        key: Callable[[Any], bytes],
        primary_of: Callable[[bytes], Any],
        row: Callable[[Sequence[Any]], bytes | None],
        columns_of: Callable[[bytes], Sequence[Any]],
        more: dict[str, str] | None = None,
    ) -> None:
        """`primary` and `columns` have names and types; `more` are columns of a new row, and their SQL.

        `row` gives None for what stands for no row.
        """
        self.name, self._columns, self._more = name, columns, more or {}
        (self._primary, self._kind) = primary
        self._key, self._primary_of, self._row, self._columns_of = key, primary_of, row, columns_of

    def get(self, read: Read, keys: Sequence[bytes]) -> list[bytes | None]:
        found = dict(self.scan(read, b"", None))
        return [found.get(key) for key in keys]

    def scan(self, read: Read, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        found = read(f"SELECT {', '.join((self._primary, *self._columns))} FROM {self.name}")
        made = ((self._key(one[0]), self._row(tuple(one))) for one in found)
        rows = sorted((key, row) for key, row in made if row is not None)
        yield from (one for one in rows if one[0] >= start and (end is None or one[0] < end))

    def put(self, rows: Sequence[tuple[bytes, bytes]]) -> Statement:
        columns = [self._columns_of(row) for _, row in rows]
        arrays = [[one[at] for one in columns] for at in range(len(self._columns))]
        unnest = ", ".join(f"${at}::{kind}[]" for at, kind in enumerate((self._kind, *self._columns.values()), 1))
        more = "".join(f", {value}" for value in self._more.values())
        query = f"""
            INSERT INTO {self.name} ({", ".join((self._primary, *self._columns, *self._more))})
            SELECT t.*{more} FROM unnest({unnest}) AS t
            ON CONFLICT ({self._primary})
            DO UPDATE SET {", ".join(f"{column} = excluded.{column}" for column in self._columns)}
        """
        return query, ([self._primary_of(key) for key, _ in rows], *arrays)

    def replace(self, rows: Sequence[tuple[bytes, bytes, bytes]]) -> Statement:
        return self.put([(key, row) for key, _, row in rows])  # nobody else writes these

    def delete(self, keys: Sequence[bytes]) -> Statement:
        query = f"DELETE FROM {self.name} WHERE {self._primary} = ANY($1::{self._kind}[])"
        return query, ([self._primary_of(key) for key in keys],)


RECEIPTS: Final = Numbered("receipts", ("partition", "workflow_id", "first_seq"), RUN, "slice")
PAYLOADS: Final = Numbered("payloads", ("partition", "workflow_id", "first_seq"), RUN, "payloads")
BLOCKS: Final = Numbered("blocks", ("partition", "height"), BLOCK, "signed")
TIMERS: Final = Numbered("timers", ("partition", "at_ns", "workflow_id"), TIMER)
LIVE_RUNS: Final = Numbered("live", ("partition", "workflow_id"), RUN_PREFIX)
CLAIMS: Final = Named(
    "claims",
    "key_digest",
    {"workflow_id": "bigint", "request_digest": "bytea"},
    row=lambda columns: _ENCODER.encode(Claim(*columns)),
    columns_of=lambda row: (_CLAIM.decode(row).workflow_id, _CLAIM.decode(row).request_digest),
)
DESCRIPTORS: Final = Named(
    "descriptors", "digest", {"text": "bytea"}, row=lambda columns: bytes(columns[1]), columns_of=lambda row: (row,)
)
META: Final = Named(
    "meta", "key", {"value": "bytea"}, row=lambda columns: bytes(columns[1]), columns_of=lambda row: (row,)
)
EPOCHS: Final = Small(
    "partitions",
    ("partition", "integer"),
    {"epoch": "bigint"},
    key=PARTITION.pack,
    primary_of=lambda key: PARTITION.unpack(key)[0],
    row=lambda columns: NUMBER.pack(columns[1]),
    columns_of=NUMBER.unpack,
    more={"height": "-1", "block_hash": "decode(repeat('00', 32), 'hex')"},
)
CURSORS: Final = Small(
    "cursors",
    ("fold", "text"),
    {"height": "bigint"},
    key=str.encode,
    primary_of=bytes.decode,
    row=lambda columns: NUMBER.pack(columns[1]) if columns[1] >= 0 else None,
    columns_of=NUMBER.unpack,
)
SIGNING_KEYS: Final = Small(
    "signing_keys",
    ("key_id", "text"),
    {"raw": "bytea", "created_at_ns": "bigint", "retired_at_ns": "bigint"},
    key=str.encode,
    primary_of=bytes.decode,
    row=lambda columns: _ENCODER.encode(PublicKey(*columns)),
    columns_of=lambda row: msgspec.structs.astuple(_KEY.decode(row))[1:],
)


def projections(fold: str) -> Named:
    """The rows of a fold."""
    return Named(
        "projections",
        "key",
        {"value": "bytea"},
        row=lambda columns: bytes(columns[1]),
        columns_of=lambda row: (row,),
        given={"fold": fold},
    )
