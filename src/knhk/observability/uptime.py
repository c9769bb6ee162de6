"""How much of the last 30 days a process was alive: computed from lifetimes that survive restarts.

Every few seconds the running process stores a sign of life; the time between the last one and the next start counts as
down. Rows of the fold `uptime`: `u` + start -> last sign of life, both 8 bytes big endian, Unix time in nanoseconds.
"""

import asyncio
from collections.abc import Iterable
from typing import Final, NamedTuple

from knhk.domain.errors import KnhkError
from knhk.observability.logs import get
from knhk.ports.environment import Clock
from knhk.ports.storage import Projections

FOLD: Final = "uptime"
WINDOW_NS: Final = 30 * 24 * 3600 * 1_000_000_000
MOST_LIFETIMES: Final = 10_000
_INTERVAL_S: Final = 5.0
_PAGE: Final = 1_000
_PREFIX: Final = b"u"
_NO_BLOCK: Final = 0  # this fold does not follow the journal


class Lifetime(NamedTuple):
    """From the start of a process to its last sign of life; Unix time in nanoseconds."""

    started_at_ns: int
    last_alive_at_ns: int


def uptime_percentage(lifetimes: Iterable[Lifetime], now_ns: int, window_ns: int = WINDOW_NS) -> float:
    """Share of the window before `now_ns`, or of the time since the first start if that is shorter, that was lived.

    From 0 to 100; 100 if there is nothing to look at. Lifetimes may overlap and come in any order; what lies after
    `now_ns` does not count.
    """
    alive_ns, counted_ns = lived(lifetimes, now_ns, window_ns)
    return 100.0 * alive_ns / counted_ns if counted_ns else 100.0


def lived(lifetimes: Iterable[Lifetime], now_ns: int, window_ns: int = WINDOW_NS) -> tuple[int, int]:
    """How much of the window before `now_ns`, or of the time since the first start, was lived, and how long that is."""
    ordered = sorted(lifetimes)
    if not ordered:
        return 0, 0
    begin = max(ordered[0].started_at_ns, now_ns - window_ns)
    if begin >= now_ns:
        return 0, 0
    alive_ns, counted_to = 0, begin
    for started_at_ns, last_alive_at_ns in ordered:
        since = max(started_at_ns, counted_to)
        until = min(last_alive_at_ns, now_ns)
        if until > since:
            alive_ns += until - since
            counted_to = until
    return alive_ns, now_ns - begin


def outdated(lifetimes: Iterable[Lifetime], now_ns: int) -> list[Lifetime]:
    """Lifetimes that can be forgotten: those that ended before the window, except the newest, and all but the newest.

    One that ended before the window is kept, because it tells that the window did not begin with the first start.
    """
    ordered = sorted(set(lifetimes))
    before = [one for one in ordered if one.last_alive_at_ns < now_ns - WINDOW_NS]
    surplus = ordered[: max(0, len(ordered) - MOST_LIFETIMES)]
    return sorted({*before[:-1], *surplus})


class Uptime:
    """Stores signs of life while the process runs, and tells the percentage.

    A store that cannot be read or written only makes the figure less exact; nothing here raises because of it.
    """

    def __init__(self, projections: Projections, clock: Clock, *, interval_s: float = _INTERVAL_S) -> None:
        self._projections, self._clock, self._interval_s = projections, clock, interval_s
        self._earlier: list[Lifetime] = []
        self._started_at_ns = clock.now_ns()
        self._failing = False
        self._task: asyncio.Task[None] | None = None
        self._log = get("knhk.uptime")

    async def start(self) -> None:
        """Read the earlier lifetimes and begin to give signs of life. The store must be open."""
        self._started_at_ns = now_ns = self._clock.now_ns()
        try:
            found = await self._stored()
            forgotten = outdated(found, now_ns)
            self._earlier = sorted(set(found).difference(forgotten))
            await self._projections.store(FOLD, {_key(one): None for one in forgotten}, _NO_BLOCK)
        except KnhkError as error:
            self._log.warning("earlier lifetimes cannot be read", reason=error.message)
        await self._sign_of_life()
        self._task = asyncio.create_task(self._work(), name="uptime")

    async def stop(self) -> None:
        """Store the last sign of life and end. Call it before the store is closed."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        await self._sign_of_life()

    def percentage(self, window_ns: int = WINDOW_NS) -> float:
        """Uptime over a window, in percent, the running process included."""
        now_ns = self._clock.now_ns()
        return uptime_percentage([*self._earlier, Lifetime(self._started_at_ns, now_ns)], now_ns, window_ns)

    def down_seconds(self, window_ns: int = WINDOW_NS) -> float:
        """How long no process was alive in a window; the time before the first start does not count."""
        now_ns = self._clock.now_ns()
        alive_ns, counted_ns = lived([*self._earlier, Lifetime(self._started_at_ns, now_ns)], now_ns, window_ns)
        return (counted_ns - alive_ns) / 1e9

    @property
    def seconds(self) -> float:
        """How long this process has been running."""
        return max(0, self._clock.now_ns() - self._started_at_ns) / 1e9

    async def _work(self) -> None:
        while True:
            await self._clock.sleep(self._interval_s)
            await self._sign_of_life()

    async def _sign_of_life(self) -> None:
        lifetime = Lifetime(self._started_at_ns, self._clock.now_ns())
        row = lifetime.last_alive_at_ns.to_bytes(8)
        try:
            await self._projections.store(FOLD, {_key(lifetime): row}, _NO_BLOCK)
        except KnhkError as error:
            if not self._failing:
                self._log.warning("a sign of life cannot be stored", reason=error.message)
            self._failing = True
        else:
            self._failing = False

    async def _stored(self) -> list[Lifetime]:
        """The newest lifetimes in the store; a page more than are kept, so that the surplus is found and deleted."""
        found: list[Lifetime] = []
        before: bytes | None = None
        while len(found) < MOST_LIFETIMES + _PAGE:
            page = await self._projections.rows(FOLD, _PREFIX, before=before, limit=_PAGE)
            found += [Lifetime(int.from_bytes(key[1:]), int.from_bytes(row)) for key, row in page]
            if len(page) < _PAGE:
                break
            before = page[-1][0]
        return found


def _key(lifetime: Lifetime) -> bytes:
    return _PREFIX + lifetime.started_at_ns.to_bytes(8)
