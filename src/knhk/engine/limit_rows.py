"""Rows of the projection that say who counts for which limit, and how they are read after a restart.

'k' | workflow id 8                      a run that is under way and holds a concurrency key: the key
't' | until when it counts 8 | id 8      a start that counts for a rate limit: the rate key

Times are Unix time in ns. Starts that count no more are deleted when further ones are written.
"""

from typing import Final

from knhk.domain import event as ev
from knhk.domain.event import TERMINAL, Event
from knhk.domain.summary import Summary
from knhk.engine.holders import Holders
from knhk.ports.storage import Projections

HOLDERS: Final = b"k"
STARTS: Final = b"t"
_TERMINAL: Final = tuple(ev.DETAILS[ev.Kind(kind)] for kind in TERMINAL)
_PAGE: Final = 1000


def rows_of(summary: Summary, event: Event) -> dict[bytes, bytes | None]:
    """What an event of a run with limits changes; None deletes."""
    changed: dict[bytes, bytes | None] = {}
    detail = event.detail
    if summary.concurrency_key:
        if isinstance(detail, ev.Started | ev.Retried):
            changed[_holder_key(summary.workflow_id)] = summary.concurrency_key.encode()
        elif isinstance(detail, _TERMINAL):
            changed[_holder_key(summary.workflow_id)] = None
    if summary.rate_key and isinstance(detail, ev.Started) and detail.counts_until_ns:
        changed[STARTS + detail.counts_until_ns.to_bytes(8) + summary.workflow_id.to_bytes(8)] = (
            summary.rate_key.encode()
        )
    return changed


async def outdated(projections: Projections, fold: str, now_ns: int) -> dict[bytes, bytes | None]:
    """The deletion of starts that count no more, some of them if there are many."""
    rows = await projections.rows(fold, STARTS, before=STARTS + now_ns.to_bytes(8), limit=_PAGE)
    return {key: None for key, _ in rows}


async def load(projections: Projections, fold: str, holders: Holders, now_ns: int) -> None:
    """Tell the holders what the rows know, which must have everything that was committed before this process began."""
    held = [(int.from_bytes(key[-8:]), value.decode()) for key, value in await _all(projections, fold, HOLDERS)]
    starts = [
        (until_ns, value.decode())
        for key, value in await _all(projections, fold, STARTS)
        if (until_ns := int.from_bytes(key[1:9])) > now_ns
    ]
    holders.load(held, starts)


async def _all(projections: Projections, fold: str, prefix: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    before: bytes | None = None
    while True:
        page = await projections.rows(fold, prefix, before=before, limit=_PAGE)
        found += page
        if len(page) < _PAGE:
            return found
        before = page[-1][0]


def _holder_key(workflow_id: int) -> bytes:
    return HOLDERS + workflow_id.to_bytes(8)
