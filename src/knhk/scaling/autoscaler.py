"""The duty of the room: looks at the load, decides, writes the decision down, and carries it out.

    every few seconds, on the leader alone:
        is a decision open?  yes: go on with it: drain -> wait -> change the number -> write down that it is done
                             no:  measure -> decide -> write down -> begin

A step is never waited for: each look finds how far a decision is and does what is next, so that a restart or a new
leader goes on where the last one was. Nothing is done before its receipt is committed; a deposed leader commits none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from knhk.domain.errors import Conflict, KnhkError, Unavailable
from knhk.domain.event import ScalingDecided
from knhk.domain.triggers import Cron
from knhk.observability.logs import get
from knhk.ports.environment import Clock
from knhk.ports.scaler import Scaler
from knhk.scaling import forecast
from knhk.scaling.crew import Crew
from knhk.scaling.decision import Decision, Policy, Signal, decide, overloads
from knhk.scaling.dry_run import NAME as DRY_RUN
from knhk.scaling.forecast import Firings
from knhk.scaling.history import History
from knhk.scaling.ledger import Entry, Ledger, month_of
from knhk.scaling.load import Fleet, signals_of
from knhk.scaling.meter import Meter

OK: Final = "ok"
DONE, FAILED, CANCELLED, ADVISED = "done", "failed", "cancelled", "advised"
_FORECAST_NS: Final = 60_000_000_000


class Settings(msgspec.Struct, frozen=True):
    """How the duty works; times in seconds. `limit_s` is how long a decision may take to be carried out."""

    enabled: bool
    interval_s: float
    limit_s: float


class Look(msgspec.Struct, frozen=True):
    """What the last look found."""

    at_ns: int
    decision: Decision
    fleet: Fleet
    unknown: tuple[str, ...]


class Autoscaler:
    """Implements ports.duty.Duty."""

    room = "scaling"

    def __init__(
        self,
        settings: Settings,
        policy: Callable[[], Policy],
        *,
        clock: Clock,
        scaler: Scaler,
        crew: Crew,
        ledger: Ledger,
        history: History,
        meter: Meter,
        schedules: Callable[[], Sequence[tuple[str, Cron]]],
        closing: Sequence[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        self.settings, self._policy, self.scaler, self.crew, self.ledger = settings, policy, scaler, crew, ledger
        self.history, self.meter = history, meter
        self._clock, self._schedules, self._closing = clock, schedules, closing
        self.last: Look | None = None
        self.firings: list[Firings] = []
        self.waits_for = ""
        """What an open decision waits for, in words."""
        self.trouble = ""
        self.counts: dict[tuple[str, str], int] = {
            (way, outcome): 0 for way in ("up", "down") for outcome in (DONE, FAILED, CANCELLED, ADVISED)
        }
        self._loaded = False
        self._forecast_ns = 0
        self._task: asyncio.Task[None] | None = None
        self._log = get("knhk.scaling")

    async def start(self) -> None:
        """Begin to look, if it is switched on."""
        if self.settings.enabled:
            self._task = asyncio.create_task(self._work(), name="scaling")

    async def stop(self) -> None:
        """End; a decision that is open is gone on with by the next leader."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for close in self._closing:
            await close()

    @property
    def policy(self) -> Policy:
        """What is allowed now."""
        return self._policy()

    @property
    def decides(self) -> bool:
        """Whether it is this process that decides."""
        return self._task is not None and self.crew.leads()

    def health(self) -> str:
        """What keeps it from deciding or from doing what was decided."""
        last = self.ledger.entries[-1] if self.ledger.entries else None
        failed = f"the last decision failed: {last.problem}" if last is not None and last.outcome == FAILED else ""
        return self.trouble or failed or OK

    async def _work(self) -> None:
        while True:
            try:
                await self.look()
            except KnhkError as error:
                self.trouble = error.message
            except Exception as error:  # a fault of ours must not end all scaling
                self._log.exception("a look at the load failed")
                self.trouble = f"{type(error).__name__}: {error}"
            await self._clock.sleep(self.settings.interval_s)

    async def look(self) -> None:
        """Look once, and do what is next. Raises KnhkError; then the next look tries again."""
        if not self.crew.leads():
            # Whoever leads next may have read less, or more: all of it is read anew.
            self._loaded, self.last, self.trouble, self.waits_for = False, None, "", ""
            return
        self.trouble = ""
        if not self._loaded:
            await self.ledger.load(self._clock.now_ns())
            await self.history.load()
            self._loaded = True
        current = await self.scaler.current()
        found = await self._measure(current)
        if not self.crew.leads():
            return
        self.last, entry = found, self.ledger.open
        if entry is not None:
            await self._go_on(entry, found)
            return
        await self._clean_up()
        decision = found.decision
        if decision.changes and not self._is_advised(decision):
            await self._begin(decision)

    async def _measure(self, current: int) -> Look:
        fleet, now_ns = await self.crew.loads(), self._clock.now_ns()
        self.history.add(fleet, now_ns)
        await self.history.store(now_ns)
        signals, unknown = signals_of(fleet, current, self.policy)
        signals += await self._forecasts(fleet, current, now_ns)
        unknown += self.crew.doubts()
        decision = decide(signals, unknown, current, self.policy, self.ledger.history, now_ns)
        doubtful = [one.signal for one in decision.signals if one.desired is None]
        return Look(now_ns, decision, fleet, (*unknown, *(f"{one.name}: {one.why}" for one in doubtful)))

    async def _forecasts(self, fleet: Fleet, current: int, now_ns: int) -> list[Signal]:
        if not 0 <= now_ns - self._forecast_ns < _FORECAST_NS:
            schedules = self._schedules()
            # Many of them take a while to be worked out.
            self.firings = await asyncio.to_thread(forecast.firings, schedules, now_ns) if schedules else []
            self._forecast_ns = now_ns
        hours, target = self.history.hours, self.policy.target_cpu
        found = (
            forecast.scheduled(self.firings, self.meter.means, hours, fleet.loads, current, target),
            forecast.seasonal(hours, fleet.loads, current, target, now_ns),
        )
        return [one for one in found if one is not None]

    def _is_advised(self, decision: Decision) -> bool:
        """Whether this very advice was the last: where nothing can be done, it is given once."""
        last = self.ledger.entries[-1].decided if self.ledger.entries else None
        same = last is not None and (last.before, last.after) == (decision.current, decision.wanted)
        return same and self.scaler.name == DRY_RUN

    async def _begin(self, decision: Decision) -> None:
        now_ns = self._clock.now_ns()
        leaving = self.crew.departing(decision.current, decision.wanted) if decision.wanted < decision.current else ()
        decided = ScalingDecided(
            month_of(now_ns),
            self.scaler.name,
            decision.current,
            decision.wanted,
            decision.reason,
            tuple(f"{one.signal.name} {one.signal.value} of {one.signal.target}" for one in decision.signals),
            tuple(name for name in leaving if name not in self.crew.drained()),
        )
        entry = await self.ledger.begin(now_ns, decided)
        self._log.info(
            "scaling", driver=decided.driver, before=decided.before, after=decided.after, reason=decided.reason
        )
        if self.scaler.name == DRY_RUN:
            await self._end(entry, ADVISED)
        elif self.last is not None:
            await self._go_on(entry, self.last)

    async def _go_on(self, entry: Entry, found: Look) -> None:
        """Do what is next for a decision that is not carried out yet."""
        decided, current, late = entry.decided, found.decision.current, self._is_late(entry)
        if current == decided.after:
            await self._end(entry, DONE)
        elif current != decided.before:
            await self._cancel(entry, f"somebody has set {current} replicas")
        elif decided.after > decided.before:
            await self._welcome(decided)
            await self._scale(entry, late=late)
        elif over := overloads([one.signal for one in found.decision.signals], current, decided.after):
            await self._cancel(entry, f"{over.name} has risen: {decided.after} replicas would be too few")
        elif busy := await self._drain(decided):
            self.waits_for = ", ".join(f"{name} still owns {count} partitions" for name, count in busy.items())
            if late:
                await self._cancel(entry, f"{self.waits_for} after {self.settings.limit_s:g} s")
        else:
            await self._scale(entry, late=late)

    async def _drain(self, decided: ScalingDecided) -> dict[str, int]:
        """Have those that go drained; who still owns how many partitions."""
        leaving = self.crew.departing(decided.before, decided.after)
        for name in leaving:
            if name in self.crew.members() and name not in self.crew.drained():
                await self.crew.drain(name, drained=True)
        return {name: count for name in leaving if (count := self.crew.owns(name))}

    async def _welcome(self, decided: ScalingDecided) -> None:
        """Those who come take part, if it was a decision that had drained them when they went."""
        for name in self._drained_here().intersection(self.crew.departing(decided.after, decided.before)):
            await self.crew.drain(name, drained=False)

    async def _scale(self, entry: Entry, *, late: bool) -> None:
        if not self.crew.leads():
            return
        try:
            await self.scaler.scale_to(entry.decided.after)
        except (Conflict, Unavailable) as error:
            self.waits_for = self.trouble = error.message  # the next look tries again
            if late:
                await self._undo(entry, FAILED, error.message)
        except KnhkError as error:
            await self._undo(entry, FAILED, f"{error.message} {error.advice}".strip())
        else:
            await self._end(entry, DONE)

    async def _cancel(self, entry: Entry, why: str) -> None:
        self._log.info("scaling was called off", after=entry.decided.after, reason=why)
        await self._undo(entry, CANCELLED, why)

    async def _undo(self, entry: Entry, outcome: str, why: str) -> None:
        for name in entry.decided.drains:
            if name in self.crew.drained():
                await self.crew.drain(name, drained=False)
        await self._end(entry, outcome, why)

    async def _end(self, entry: Entry, outcome: str, why: str = "") -> None:
        await self.ledger.end(entry, self._clock.now_ns(), outcome, why)
        self.counts["up" if entry.decided.after > entry.decided.before else "down", outcome] += 1
        self.waits_for = self.trouble = ""
        self._log.info("scaling ended", outcome=outcome, after=entry.decided.after, problem=why)

    async def _clean_up(self) -> None:
        """Take the marks of those away that are gone: whoever comes by that name again is to take part."""
        for name in self._drained_here() - self.crew.members():
            await self.crew.drain(name, drained=False)

    def _drained_here(self) -> frozenset[str]:
        """Who is drained because of a decision, not because an operator said so."""
        return self.crew.drained().intersection(name for one in self.ledger.entries for name in one.decided.drains)

    def _is_late(self, entry: Entry) -> bool:
        return not 0 <= self._clock.now_ns() - entry.at_ns < self.settings.limit_s * 1e9
