"""Rows of the projection by which events and those who wait for them find each other.

A topic is an event's name with a correlation, as 16 bytes of their SHA-256.

'w' | topic 16 | workflow id 8                     a run of which a step waits for the topic
'e' | topic 16 | kept until 8 | record id 8        an event that is kept: its name, correlation and id

Times are Unix time in ns. A row may outlive what it stands for; the run itself says whether it waits.
"""

from collections.abc import Collection
from hashlib import sha256
from typing import Final

import msgspec

from knhk.domain import event as ev
from knhk.domain.event import Event
from knhk.domain.summary import Summary
from knhk.ports.storage import Projections

WAITING: Final = b"w"
EVENTS: Final = b"e"
_TOPIC_BYTES: Final = 16
_PAGE: Final = 1000


class KeptEvent(msgspec.Struct, frozen=True, array_like=True):
    """An event that is kept until a time."""

    record_id: int
    event: str
    correlate: str
    id: str
    kept_until_ns: int

    @property
    def signal_id(self) -> str:
        """The id under which a run takes it."""
        return f"event {self.record_id}"


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(KeptEvent)


def topic_of(event: str, correlate: str) -> bytes:
    """The topic of an event with a correlation."""
    return sha256(event.encode() + b"\x00" + correlate.encode()).digest()[:_TOPIC_BYTES]


def topics_of(summary: Summary) -> set[bytes]:
    """The topics that the steps of a run wait for."""
    return {
        topic_of(one.event, one.correlate) for one in summary.waiting.values() if one.kind == "event" and one.correlate
    }


def rows_of(summary: Summary, before: set[bytes]) -> dict[bytes, bytes | None]:
    """What must change for the topics of a run, of which the rows have those of `before`."""
    now = topics_of(summary)
    suffix = summary.workflow_id.to_bytes(8)
    gone: dict[bytes, bytes | None] = {WAITING + topic + suffix: None for topic in before - now}
    return gone | {WAITING + topic + suffix: b"" for topic in now - before}


def event_row(record_id: int, event: Event) -> tuple[bytes, bytes]:
    """Key and row of an event that is kept."""
    detail = event.detail
    assert isinstance(detail, ev.EventReceived)
    key = EVENTS + topic_of(detail.name, detail.correlate) + detail.kept_until_ns.to_bytes(8) + record_id.to_bytes(8)
    return key, _ENCODER.encode(KeptEvent(record_id, detail.name, detail.correlate, detail.id, detail.kept_until_ns))


async def waiting_runs(
    projections: Projections, fold: str, topic: bytes, before: bytes | None, limit: int
) -> tuple[list[int], bytes | None]:
    """Runs that wait for a topic, and where to go on, None at the end."""
    rows = await projections.rows(fold, WAITING + topic, before=before, limit=limit)
    ids = [int.from_bytes(key[-8:]) for key, _ in rows]
    return ids, rows[-1][0] if len(rows) == limit else None


async def all_waiting(projections: Projections, fold: str, topics: Collection[bytes]) -> dict[bytes, list[int]]:
    """The runs that wait for any of these topics, by topic: one pass over all who wait, however many topics."""
    found: dict[bytes, list[int]] = {}
    before: bytes | None = None
    while topics:
        rows = await projections.rows(fold, WAITING, before=before, limit=_PAGE)
        for key, _ in rows:
            if (topic := key[1:-8]) in topics:
                found.setdefault(topic, []).append(int.from_bytes(key[-8:]))
        if len(rows) < _PAGE:
            break
        before = rows[-1][0]
    return found


async def kept_events(projections: Projections, fold: str, topic: bytes, now_ns: int) -> list[KeptEvent]:
    """The events that are kept for a topic (for all, if it is empty), the oldest first."""
    found: list[KeptEvent] = []
    before: bytes | None = None
    while True:
        rows = await projections.rows(fold, EVENTS + topic, before=before, limit=_PAGE)
        found += [kept for kept in (_DECODER.decode(raw) for _, raw in rows) if kept.kept_until_ns > now_ns]
        if len(rows) < _PAGE:
            return sorted(found, key=lambda one: one.record_id)
        before = rows[-1][0]


async def outdated(projections: Projections, fold: str, topic: bytes, now_ns: int) -> dict[bytes, bytes | None]:
    """The deletion of events of a topic that are kept no more."""
    before = EVENTS + topic + now_ns.to_bytes(8)
    return {key: None for key, _ in await projections.rows(fold, EVENTS + topic, before=before, limit=_PAGE)}
