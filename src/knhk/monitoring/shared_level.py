"""The service level of several nodes: each counts and stores how the runs of its partitions ended, and reads all rows.

A partition's tally is stored by its owner alone, with the height of the last block in it; whoever takes the partition
over reads on from there. Every node knows the whole, a few seconds old.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

import msgspec

from knhk.domain.errors import KnhkError
from knhk.domain.event import Event
from knhk.domain.identifier import partition_of
from knhk.domain.summary import Summary
from knhk.monitoring.history import HOURS_KEPT, MINUTES_KEPT, Bucket, prefixes
from knhk.monitoring.service_level import ServiceLevel
from knhk.monitoring.tally import ENDS, Progress, Tally, fold_of
from knhk.ports.environment import Clock
from knhk.ports.journal import Journal
from knhk.ports.storage import Projections

_NEWEST: Final = 3
"""So many of the newest minutes and hours are read again each time."""
_ALL_S: Final = 600.0
"""Everything is read again after this: an owner may have made up for what is older."""
_KEPT: Final = dict(zip(prefixes(), (MINUTES_KEPT, HOURS_KEPT), strict=True))


class Owned(Protocol):
    """The engine of a partition that this process owns."""

    @property
    def started(self) -> bool: ...
    @property
    def projector(self) -> Progress: ...


class SharedLevel:
    """A `ports.fold.Fold` for all partitions of a process, and the keeper of what all processes know together."""

    kinds: Final = ENDS

    def __init__(
        self,
        clock: Clock,
        level: ServiceLevel,
        journal: Journal,
        reader: Projections,
        projections_of: Callable[[int], Projections],
        owned: Callable[[], Mapping[int, Owned]],
        partitions: int,
    ) -> None:
        self._clock, self._level, self._journal, self._reader = clock, level, journal, reader
        self._projections_of, self._owned, self._partitions = projections_of, owned, partitions
        self._tallies: dict[int, tuple[Owned, Tally]] = {}
        self._all_read_ns = 0

    def take(self, summary: Summary, event: Event, action: str) -> None:
        """Count in the tally of the run's partition, if it is still ours."""
        partition = partition_of(summary.workflow_id)
        owned = self._owned().get(partition)
        if owned is not None:
            self._tally(partition, owned).take(summary, event, action)

    async def tend(self) -> None:
        """Store what was counted, take in what others have stored. Raises Unavailable, Corrupt."""
        await self.store()
        now_ns = self._clock.now_ns()
        everything = now_ns - self._all_read_ns > _ALL_S * 1e9
        await self._read(everything)
        if everything:
            self._all_read_ns = now_ns
        self._level.complete = True

    async def store(self) -> None:
        """Store the tallies of all partitions of this process, each at a moment at which its projector rests."""
        owned = self._owned()
        for partition in set(self._tallies) - set(owned):
            del self._tallies[partition]  # its next owner counts on from what was stored
        for partition, engine in dict(owned).items():
            if engine.started:
                tally, projections = self._tally(partition, engine), self._projections_of(partition)
                try:
                    if not tally.complete:
                        await tally.load(projections, self._journal, partition, engine.projector)
                    elif engine.projector.cursor >= 0:  # else there is no block yet
                        await tally.store(projections, engine.projector)
                except KnhkError:  # it is on its way to another node, or the next time does it
                    continue

    def _tally(self, partition: int, owned: Owned) -> Tally:
        known = self._tallies.get(partition)
        if known is None or known[0] is not owned:
            known = self._tallies[partition] = owned, Tally(self._clock, self._level.targets.latency_s)
        return known[1]

    async def _read(self, everything: bool) -> None:
        found: dict[bytes, Bucket] = {}
        for partition in range(self._partitions):
            for prefix, kept in _KEPT.items():
                rows = await self._reader.rows(fold_of(partition), prefix, limit=kept if everything else _NEWEST)
                for key, bucket in _decoded(rows):
                    found.setdefault(key, Bucket()).add(bucket)
        self._level.history.put(found, self._clock.now_ns(), None if everything else _NEWEST)


def _decoded(rows: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Bucket]]:
    for key, raw in rows:
        try:
            yield key, msgspec.msgpack.decode(raw, type=Bucket)
        except msgspec.DecodeError:
            continue
