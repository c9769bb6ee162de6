"""How runs ended, by minute for the last hours and by hour for the last month: what rolling windows are summed from.

Bounded by time alone: a busy month takes as much memory as a quiet one, about 1,100 buckets.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from operator import add
from typing import Final, NamedTuple

import msgspec

MINUTE_NS: Final = 60_000_000_000
HOUR_NS: Final = 60 * MINUTE_NS
MINUTES_KEPT: Final = 6 * 60 + 5
HOURS_KEPT: Final = 30 * 24 + 1
BOUNDS_S: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
    *(10.0, 30.0, 60.0, 300.0, 1_800.0, 3_600.0, 86_400.0),
)
_MINUTE, _HOUR = b"m", b"h"


class Bucket(msgspec.Struct, array_like=True):
    """What ended in one minute or hour. `durations` counts by the bounds of BOUNDS_S, and one place for longer ones."""

    total: int = 0
    failed: int = 0
    slow: int = 0
    durations: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))

    def add(self, other: "Bucket") -> None:
        """Count what the other one has counted too."""
        self.total += other.total
        self.failed += other.failed
        self.slow += other.slow
        self.durations = list(map(add, self.durations, other.durations))


class _Series(NamedTuple):
    prefix: bytes
    length_ns: int
    kept: int
    buckets: dict[int, Bucket]


class History:
    """The buckets, and which of them changed since they were last stored.

    Rows: `m` or `h` and the bucket's number since 1970, 8 bytes big endian -> the bucket in msgpack.
    """

    def __init__(self) -> None:
        self._series = (_Series(_MINUTE, MINUTE_NS, MINUTES_KEPT, {}), _Series(_HOUR, HOUR_NS, HOURS_KEPT, {}))
        self._changed: set[tuple[bytes, int]] = set()
        # What ended in one minute and is in no bucket yet: nearly always the newest one.
        self._fresh, self._fresh_from_ns = Bucket(), 0

    def add(self, ended_at_ns: int, *, failed: bool, slow: bool, seconds: float) -> None:
        """Count one run that ended."""
        if not 0 <= ended_at_ns - self._fresh_from_ns < MINUTE_NS:
            self._settle()
            self._fresh_from_ns = ended_at_ns - ended_at_ns % MINUTE_NS
        fresh = self._fresh
        fresh.total += 1
        fresh.failed += failed
        fresh.slow += slow
        fresh.durations[bisect_left(BOUNDS_S, seconds)] += 1

    def _settle(self) -> None:
        """Put into the buckets what is in none yet."""
        fresh = self._fresh
        if not fresh.total:
            return
        for prefix, length_ns, _, buckets in self._series:
            number = self._fresh_from_ns // length_ns
            buckets.setdefault(number, Bucket()).add(fresh)
            self._changed.add((prefix, number))
        self._fresh = Bucket()

    def window(self, now_ns: int, length_s: float) -> Bucket:
        """All that ended in the last `length_s` seconds, to the minute for the last 6 hours, else to the hour."""
        self._settle()
        length_ns = int(length_s * 1e9)
        minutes, hours = self._series
        series = minutes if length_ns <= (MINUTES_KEPT - 5) * MINUTE_NS else hours
        found, oldest, newest = Bucket(), (now_ns - length_ns) // series.length_ns, now_ns // series.length_ns
        for number in range(oldest + 1, newest + 1):
            if (bucket := series.buckets.get(number)) is not None:
                found.add(bucket)
        return found

    def rows(self, now_ns: int) -> dict[bytes, bytes | None]:
        """The rows that changed since the last call, and those that are too old to be kept (None)."""
        self._settle()
        rows: dict[bytes, bytes | None] = {}
        for prefix, length_ns, kept, buckets in self._series:
            for number in [one for one in buckets if one < now_ns // length_ns - kept]:
                del buckets[number]
                rows[_key(prefix, number)] = None
            for number, bucket in buckets.items():
                if (prefix, number) in self._changed:
                    rows[_key(prefix, number)] = msgspec.msgpack.encode(bucket)
        self._changed.clear()
        return rows

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take in what was stored, besides what was counted meanwhile. Rows that cannot be read are passed over."""
        by_prefix = {series.prefix: series for series in self._series}
        for key, raw in rows:
            series = by_prefix.get(key[:1])
            try:
                stored = msgspec.msgpack.decode(raw, type=Bucket)
            except msgspec.DecodeError:
                continue
            if series is not None and len(key) == 9:
                number = int.from_bytes(key[1:])
                series.buckets.setdefault(number, Bucket()).add(stored)
                self._changed.add((series.prefix, number))

    def put(self, rows: Mapping[bytes, Bucket], now_ns: int, newest: int | None) -> None:
        """Take buckets by their keys in place of what is known: of all, or of the `newest` minutes and hours alone."""
        self._settle()
        for prefix, length_ns, kept, buckets in self._series:
            since = now_ns // length_ns - (kept if newest is None else newest - 1)
            if newest is None:
                buckets.clear()
            for key, bucket in rows.items():
                if key[:1] == prefix and (number := int.from_bytes(key[1:])) >= since:
                    buckets[number] = bucket


def _key(prefix: bytes, number: int) -> bytes:
    return prefix + number.to_bytes(8)


def prefixes() -> Sequence[bytes]:
    """What the keys of the rows begin with."""
    return _MINUTE, _HOUR
