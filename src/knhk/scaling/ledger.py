"""The decisions as receipts: a record for each month, so that none grows without end.

What was decided last, and whether it was carried out, is read from here after a restart and by every new leader:
cooldowns go on, and so does a decision that its leader did not finish.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from knhk.domain.event import Event, ScalingDecided, ScalingEnded
from knhk.domain.identifier import to_text
from knhk.domain.times import rfc3339
from knhk.engine.records import events_of
from knhk.ports.journal import Journal, record_key
from knhk.scaling.decision import Past

FAMILY: Final = "scaling"
ACTOR: Final = "scaling"
_MONTH: Final = 7
_FIRST_DAY_NS: Final = 86_400_000_000_000
_KEPT: Final = 200

Propose = Callable[[ScalingDecided | ScalingEnded], Awaitable[int]]
"""Has a detail committed to its record; the record's id."""


class Entry(msgspec.Struct):
    """A decision; `outcome` is empty while it is being carried out. `record` is the id of the record it stands on."""

    at_ns: int
    decided: ScalingDecided
    record: str
    outcome: str = ""
    problem: str = ""
    ended_at_ns: int = 0


class Ledger:
    """The decisions of this month and the last, the newest last."""

    def __init__(self, journal: Journal, propose: Propose) -> None:
        self._journal, self._propose = journal, propose
        self.entries: list[Entry] = []

    async def load(self, now_ns: int) -> None:
        """Read what was written. Raises ReceiptCorrupt, Unavailable."""
        this = month_of(now_ns)
        before = month_of(_first_of(now_ns) - _FIRST_DAY_NS)
        self.entries = [*await self._read(before), *await self._read(this)][-_KEPT:]

    @property
    def open(self) -> Entry | None:
        """The decision that is being carried out."""
        return self.entries[-1] if self.entries and not self.entries[-1].outcome else None

    @property
    def history(self) -> list[Past]:
        """What cooldowns count: every decision, whatever became of it."""
        return [Past(one.at_ns, one.decided.before, one.decided.after) for one in self.entries]

    async def begin(self, at_ns: int, decided: ScalingDecided) -> Entry:
        """Write a decision down; nothing may be done about it before that is committed. Raises KnhkError."""
        record = await self._propose(decided)
        entry = Entry(at_ns, decided, to_text(record))
        self.entries = [*self.entries, entry][-_KEPT:]
        return entry

    async def end(self, entry: Entry, at_ns: int, outcome: str, problem: str = "") -> None:
        """Write down what became of a decision. Raises KnhkError."""
        await self._propose(ScalingEnded(entry.decided.name, outcome, problem))
        entry.outcome, entry.problem, entry.ended_at_ns = outcome, problem, at_ns

    async def _read(self, name: str) -> list[Entry]:
        claim = await self._journal.claim(record_key(FAMILY, name))
        if claim is None:
            return []
        events, _ = await events_of(self._journal, claim.workflow_id)
        return _entries(events, to_text(claim.workflow_id))


def _entries(events: list[Event], record: str) -> list[Entry]:
    found: list[Entry] = []
    for event in events:
        match event.detail:
            case ScalingDecided() as decided:
                found.append(Entry(event.at_ns, decided, record))
            case ScalingEnded(_, outcome, problem) if found:
                found[-1].outcome, found[-1].problem, found[-1].ended_at_ns = outcome, problem, event.at_ns
            case _:
                continue
    return found


def month_of(at_ns: int) -> str:
    """The name of the record of a time: its month, such as 2026-01."""
    return rfc3339(at_ns)[:_MONTH]


def _first_of(at_ns: int) -> int:
    """A time on the first day of the same month."""
    return at_ns - (int(rfc3339(at_ns)[8:10]) - 1) * _FIRST_DAY_NS
