"""What was used in each hour of the last days, and what runs of each definition take; kept in the leader's store.

Rows of the fold `scaling`: `h` and the hour's number, 8 bytes big endian -> Hour; `d` and a definition's name -> Mean.
The rows are no truth: a crash loses a minute of them, and forecasts are a little lower for it.
"""

from typing import Final, TypeVar

import msgspec

from knhk.ports.storage import Projections
from knhk.scaling.forecast import Hour, Mean, hour_of
from knhk.scaling.load import Fleet, used

FOLD: Final = "scaling"
HOURS_KEPT: Final = 8 * 24
_HOUR, _DEFINITION = b"h", b"d"
_NO_BLOCK: Final = 0  # this fold does not follow the journal
_MOST_DEFINITIONS: Final = 1_000
_STORE_NS: Final = 60_000_000_000
_LONGEST_GAP_S: Final = 300.0
_Row = TypeVar("_Row", Hour, Mean)


class History:
    """The hours, and when they were last added to and stored."""

    def __init__(self, projections: Projections, means: dict[str, Mean]) -> None:
        self._projections, self._means = projections, means
        self.hours: dict[int, Hour] = {}
        self._before = Fleet(())
        self._at_ns = self._stored_ns = 0

    async def load(self) -> None:
        """Take in what earlier leaders stored. Raises Unavailable."""
        hours = await self._rows(_HOUR, Hour, HOURS_KEPT + 1)
        self.hours = {int.from_bytes(key[:8]): row for key, row in hours.items()}
        for key, row in (await self._rows(_DEFINITION, Mean, _MOST_DEFINITIONS)).items():
            name = key.decode(errors="replace")
            own = self._means.get(name)
            if own is None or own.runs < row.runs:
                self._means[name] = row
        self._before, self._at_ns = Fleet(()), 0

    def add(self, fleet: Fleet, now_ns: int) -> None:
        """Count what was used since the last look. Nothing is made up for a gap, or a clock that jumped."""
        elapsed_s = (now_ns - self._at_ns) / 1e9
        if 0 < elapsed_s < _LONGEST_GAP_S:
            cpu_s, work_s = used(self._before.loads, fleet.loads)
            hour = self.hours.setdefault(hour_of(now_ns), Hour())
            hour.cpu_s, hour.work_s, hour.covered_s = (
                hour.cpu_s + cpu_s,
                hour.work_s + work_s,
                hour.covered_s + elapsed_s,
            )
        self._before, self._at_ns = fleet, now_ns

    async def store(self, now_ns: int) -> None:
        """Store what changed, once a minute. Raises Unavailable."""
        if 0 <= now_ns - self._stored_ns < _STORE_NS:
            return
        self._stored_ns, this = now_ns, hour_of(now_ns)
        rows: dict[bytes, bytes | None] = {}
        for number in [one for one in self.hours if one < this - HOURS_KEPT]:
            del self.hours[number]
            rows[_key(number)] = None
        rows.update(
            {_key(one): msgspec.msgpack.encode(self.hours[one]) for one in (this, this - 1) if one in self.hours}
        )
        for name, mean in self._means.items():
            if name:
                rows[_DEFINITION + name.encode()] = msgspec.msgpack.encode(mean)
        await self._projections.store(FOLD, rows, _NO_BLOCK)

    async def _rows(self, prefix: bytes, kind: type[_Row], limit: int) -> dict[bytes, _Row]:
        found = {}
        for key, raw in await self._projections.rows(FOLD, prefix, limit=limit):
            try:
                found[key[1:]] = msgspec.msgpack.decode(raw, type=kind)
            except msgspec.DecodeError:  # of another version: it is counted anew
                continue
        return found


def _key(hour: int) -> bytes:
    return _HOUR + hour.to_bytes(8)
