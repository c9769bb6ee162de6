"""Rows of the projection by which a step finds what one with the same key gave.

'c' | cache key 32                  run, seq of the receipt, until when it may be used again, digest of the output
'x' | until 8 | cache key 32        the same by the time at which it is over, for cleaning up

Times are Unix time in ns. Of several that completed with one key, the last counts.
"""

from typing import Final

import msgspec

from knhk.domain import event as ev
from knhk.domain.event import Event
from knhk.ports.storage import Projections

CACHED: Final = b"c"
EXPIRY: Final = b"x"
_TIME_BYTES: Final = 8
_PAGE: Final = 100


class Cached(msgspec.Struct, frozen=True, array_like=True):
    """A step that completed: the receipt of it, and until when what it gave may be given again."""

    workflow_id: int
    seq: int
    until_ns: int
    output_digest: bytes


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Cached)


def rows_of(workflow_id: int, seq: int, event: Event) -> dict[bytes, bytes | None]:
    """What a completed step leaves for others."""
    detail = event.detail
    if not isinstance(detail, ev.StepCompleted) or not detail.cache_key:
        return {}
    key, until_ns = detail.cache_key, detail.reuse_until_ns
    row = _ENCODER.encode(Cached(workflow_id, seq, until_ns, event.output_digest))
    return {CACHED + key: row, EXPIRY + until_ns.to_bytes(_TIME_BYTES) + key: b""}


async def find(projections: Projections, fold: str, key: bytes) -> Cached | None:
    """What was left under a key; it may be over by now."""
    raw = await projections.row(fold, CACHED + key)
    return None if raw is None else _DECODER.decode(raw)


async def outdated(projections: Projections, fold: str, now_ns: int) -> dict[bytes, bytes | None]:
    """The deletion of what may not be used any more, some of it if there is much."""
    rows = await projections.rows(fold, EXPIRY, before=EXPIRY + now_ns.to_bytes(_TIME_BYTES), limit=_PAGE)
    changed: dict[bytes, bytes | None] = {}
    for row_key, _ in rows:
        changed[row_key] = None
        key = row_key[1 + _TIME_BYTES :]
        cached = await find(projections, fold, key)
        if cached is not None and cached.until_ns <= now_ns:
            changed[CACHED + key] = None
    return changed
