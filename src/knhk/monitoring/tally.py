"""How the runs of one partition ended: a fold that is kept over restarts.

The rows are stored with the height of the last block in them. What was committed after that, and before the fold began
to see events, is read from the journal at the start, so that every end is counted once, whatever was killed when.
"""

from typing import Final, Protocol

from knhk.domain import event as ev
from knhk.domain.event import Event
from knhk.domain.identifier import at_ms
from knhk.domain.summary import Summary
from knhk.monitoring.history import HOURS_KEPT, MINUTES_KEPT, History, prefixes
from knhk.ports.environment import Clock
from knhk.ports.journal import Journal
from knhk.ports.storage import Projections

FOLD: Final = "service_level"
MOST_MADE_UP: Final = 100_000
"""So many blocks are read again at most; a longer gap is left as it is."""
_PAGE: Final = 64
_BAD: Final = frozenset[type[ev.Detail]]({ev.Failed, ev.TimedOut})
ENDS: Final = frozenset[type[ev.Detail]]({ev.Completed, ev.Failed, ev.TimedOut})
"""What is counted: what an operator cancelled is neither good nor bad."""


def fold_of(partition: int) -> str:
    """The name under which a partition's rows are stored."""
    return f"{FOLD}/{partition}"


class Progress(Protocol):
    """Where the projector stands: the fold has seen all blocks after `began` up to `cursor` while it is `at_rest`."""

    @property
    def began(self) -> int: ...
    @property
    def cursor(self) -> int: ...
    @property
    def at_rest(self) -> bool: ...


class Tally:
    """A `ports.fold.Fold`. Runs that take longer than `latency_s` seconds are slow, unless that is 0."""

    kinds: Final = ENDS

    def __init__(self, clock: Clock, latency_s: float) -> None:
        self._clock, self._latency_s = clock, latency_s
        self.history = History()
        self.complete = False
        self._fold = FOLD

    def take(self, summary: Summary, event: Event, _action: str) -> None:
        """Count a run that ended. What an operator cancelled is neither good nor bad."""
        kind = type(event.detail)
        if kind in ENDS:
            self._count(self.history, kind in _BAD, summary.submitted_at_ns, event.at_ns)

    def _count(self, history: History, failed: bool, submitted_at_ns: int, ended_at_ns: int) -> None:
        seconds = max(0, ended_at_ns - submitted_at_ns) / 1e9 if submitted_at_ns else 0.0
        slow = 0 < self._latency_s < seconds
        history.add(ended_at_ns, failed=failed, slow=slow, seconds=seconds)

    # -- over restarts

    async def load(self, projections: Projections, journal: Journal, partition: int, progress: Progress) -> None:
        """Take in what earlier processes stored, and what they had not stored yet. Raises Unavailable, Corrupt."""
        self._fold = fold_of(partition)
        earlier = History()
        for prefix in prefixes():
            earlier.load(await projections.rows(self._fold, prefix, limit=MINUTES_KEPT + HOURS_KEPT))
        stored = await projections.cursor(self._fold)
        if progress.began - stored <= MOST_MADE_UP:
            await self._make_up(earlier, journal, partition, stored + 1, progress.began)
        # All of it or nothing: if the store fails on the way, this is tried again from the beginning.
        rows = earlier.rows(self._clock.now_ns())
        self.history.load([(key, row) for key, row in rows.items() if row is not None])
        self.complete = True

    async def _make_up(self, earlier: History, journal: Journal, partition: int, height: int, last: int) -> None:
        while height <= last:
            blocks = await journal.blocks(partition, height, min(_PAGE, last - height + 1))
            if not blocks:
                return
            for signed in blocks:
                for sealed in await journal.block_receipts(signed):
                    receipt = sealed.receipt()
                    event = receipt.event()
                    if type(event.detail) in ENDS:
                        # The id holds the time of the submission, which the row would have to the nanosecond.
                        self._count(
                            earlier, type(event.detail) in _BAD, at_ms(receipt.workflow_id) * 1_000_000, event.at_ns
                        )
            height += len(blocks)
            await self._clock.sleep(0)

    async def store(self, projections: Projections, progress: Progress) -> bool:
        """Store what changed, if the fold and the projector's cursor agree just now; whether it did."""
        if not self.complete or not progress.at_rest:
            return False
        cursor, rows = progress.cursor, self.history.rows(self._clock.now_ns())
        await projections.store(self._fold, rows, cursor)
        return True
