"""The rows of a store in PostgreSQL: implements rows.Rows, and writes Changes.

How a query is run is the caller's: on a connection with a transaction, on any of a pool, or in a thread of its own.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from knhk.persistence import postgres_tables as tables
from knhk.persistence.postgres_tables import Read, Statement, Table
from knhk.persistence.rocksdb_keys import CLAIM, CURSOR, DESCRIPTOR, EPOCH, LIVE, ROW, after
from knhk.persistence.rows import Changes

_END_OF_FOLD: Final = b"\x00"
_TABLES: Final[dict[str, list[tuple[bytes, Table]]]] = {
    "receipts": [(b"", tables.RECEIPTS)],
    "payloads": [(b"", tables.PAYLOADS)],
    "blocks": [(b"", tables.BLOCKS)],
    "timers": [(b"", tables.TIMERS)],
    "keys": [(b"", tables.SIGNING_KEYS)],
    "index": [(CLAIM, tables.CLAIMS), (DESCRIPTOR, tables.DESCRIPTORS), (LIVE, tables.LIVE_RUNS)],
    "runs": [(CURSOR, tables.CURSORS)],
    "meta": [(EPOCH, tables.EPOCHS), (b"", tables.META)],
}
"""The tables of each family with the prefix of their keys, in the order of the keys. Folds of `runs` are added."""
_FOLDS: Final = "SELECT DISTINCT fold FROM projections"
_ESTIMATE: Final = """
SELECT coalesce(sum(n_live_tup), 0) FROM pg_stat_user_tables WHERE relid = ANY($1::text[]::regclass[])
"""


class PostgresRows:
    """Rows, read with `read`."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def get(self, family: str, key: bytes) -> bytes | None:
        return self.get_many(family, [key])[0]

    def get_many(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        found: dict[bytes, bytes | None] = {}
        for prefix, table, of_table in _by_table(family, keys):
            found.update(zip(of_table, table.get(self._read, [key[len(prefix) :] for key in of_table]), strict=True))
        return [found.get(key) for key in keys]

    def scan(self, family: str, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        for prefix, table in self._tables(family, start, end):
            last = after(prefix) if prefix else None
            if (end is not None and prefix >= end and prefix) or (last is not None and start >= last):
                continue
            first = start[len(prefix) :] if start > prefix else b""
            until = end[len(prefix) :] if end is not None and (last is None or end < last) else None
            for key, row in table.scan(self._read, first, until):
                yield prefix + key, row

    def _tables(self, family: str, start: bytes, end: bytes | None) -> list[tuple[bytes, Table]]:
        known = _TABLES[family]
        if family != "runs" or (end is not None and end <= ROW):
            return known
        if start.startswith(ROW) and _END_OF_FOLD in start and end is not None and end <= after(fold_of(start)):
            prefixes = [fold_of(start)]
        else:
            prefixes = sorted(ROW + fold.encode() + _END_OF_FOLD for (fold,) in self._read(_FOLDS))
        return known + [(prefix, _projections(prefix)) for prefix in prefixes]

    def estimated_rows(self, family: str) -> int:
        names = ["projections"] if family == "runs" else [table.name for _, table in _TABLES[family]]
        return int(self._read(_ESTIMATE, names)[0][0])


def statements(changes: Changes) -> Iterator[Statement]:
    """What writes the changes, in one transaction."""
    families: dict[str, list[bytes]] = {}
    for family, key in changes.rows:
        families.setdefault(family, []).append(key)
    for family, keys in families.items():
        for prefix, table, of_table in _by_table(family, keys):
            rows = [(key[len(prefix) :], changes.rows[family, key]) for key in sorted(of_table)]
            olds = {key[len(prefix) :]: changes.replaced.get((family, key)) for key in of_table}
            gone = [key for key, row in rows if row is None]
            kept = [(key, row) for key, row in rows if row is not None and olds[key] is None]
            replaced = [(key, old, row) for key, row in rows if row is not None and (old := olds[key]) is not None]
            if replaced:
                yield table.replace(replaced)
            if gone:
                yield table.delete(gone)
            if kept:
                yield table.put(kept)


def fold_of(key: bytes) -> bytes:
    """What the key of a projection's row begins with: the same for all rows of its fold."""
    return key[: key.index(_END_OF_FOLD) + 1]


def _projections(prefix: bytes) -> Table:
    return tables.projections(prefix[len(ROW) : -1].decode())


def _by_table(family: str, keys: Sequence[bytes]) -> Iterator[tuple[bytes, Table, list[bytes]]]:
    """Each table that has some of the keys, with its prefix and those keys."""
    found: dict[bytes, tuple[Table, list[bytes]]] = {}
    for key in keys:
        if family == "runs" and key.startswith(ROW):
            prefix = fold_of(key)
            table = found[prefix][0] if prefix in found else _projections(prefix)
        else:
            prefix, table = next(one for one in _TABLES[family] if key.startswith(one[0]))
        found.setdefault(prefix, (table, []))[1].append(key)
    for prefix, (table, of_table) in found.items():
        yield prefix, table, of_table
