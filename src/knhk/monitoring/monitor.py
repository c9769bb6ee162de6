"""The duty of the room: looks at the service level and at health, keeps the incidents, has the channels told.

Rows of the fold `alerts`: `i` and the incident's id, `s` and the silence's id -> msgpack. What a channel was told is
stored as soon as it has taken it, so that a restart tells nobody twice and forgets nobody.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from knhk.domain.errors import InvalidParameter, KnhkError, NotFound
from knhk.monitoring.delivery import Channel, HttpClient, NotTold, try_out
from knhk.monitoring.incidents import Incident, Ledger, Silence, shown
from knhk.monitoring.objectives import SEVERITIES, Condition, Severity, burning
from knhk.monitoring.service_level import ServiceLevel
from knhk.monitoring.shared_level import SharedLevel
from knhk.monitoring.tally import Progress
from knhk.observability.logs import get
from knhk.observability.readings import ABSENT, OK
from knhk.ports.environment import Clock
from knhk.ports.journal import Journal
from knhk.ports.storage import Projections

FOLD: Final = "alerts"
ROOM: Final = "monitoring"
_INCIDENT, _SILENCE = b"i", b"s"
_STORE_S: Final = 5.0
_STORE_TRY_S: Final = 0.05
_STORE_TRIES: Final = 100
_UNWELL_NS: Final = 60_000_000_000
"""A check must be bad for as long before it is an alert."""
_VITAL: Final = "persistence"
_PAGE: Final = 1_000
_MOST_SHOWN: Final = 50
_MOST_SILENCES: Final = 1_000
_Row = TypeVar("_Row", Incident, Silence)

Checks = Callable[[], Mapping[str, str]]


class Monitor:
    """A duty. `checks` gives what each room says of itself, as /health/detailed shows it; other sources of conditions
    can be added to `sources`."""

    room: Final = ROOM

    def __init__(
        self,
        clock: Clock,
        level: ServiceLevel,
        ledger: Ledger,
        channels: Sequence[Channel],
        client: HttpClient,
        *,
        node: str,
        interval_s: float,
        projections: Projections,
        journal: Journal,
        partition: int,
        progress: Progress,
    ) -> None:
        self._clock, self.level, self._ledger, self._channels = clock, level, ledger, channels
        self._client, self._node, self._interval_s = client, node, interval_s
        self._projections, self._journal, self._partition, self._progress = projections, journal, partition, progress
        self.checks: Checks = dict
        self.leads: Callable[[], bool] = lambda: True
        """Whether this node is the one that tells: where several share the store, only one does."""
        self.shared: SharedLevel | None = None
        """Set where several nodes share the store: their service level is one."""
        self.silencing = projections
        """Where silences are stored, by any node."""
        self.sources: list[Callable[[], Iterable[Condition]]] = [self._burning, self._unwell]
        self._unwell_since_ns: dict[str, int] = {}
        self._telling: dict[str, asyncio.Task[None]] = {}
        self._counts: dict[tuple[str, str], int] = {
            (one.audience.channel, result): 0 for one in channels for result in ("told", "failed")
        }
        self._tasks: list[asyncio.Task[None]] = []
        self._trouble = ""
        self._numbers = 0
        self._log = get("knhk.monitoring")

    async def start(self) -> None:
        """Take in what was stored, and begin to look."""
        self._tasks = [
            asyncio.create_task(self._keep_level(), name="service-level"),
            asyncio.create_task(self._watch(), name="alerts"),
        ]

    async def stop(self) -> None:
        """End, and store what is known."""
        tasks = [*self._tasks, *self._telling.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()
        if self._tasks:
            await self._store_level()
        self._tasks = []

    def health(self) -> str:
        """What keeps alerts from being told."""
        wrong = [f"channel {channel}: {error}" for channel, error in self._ledger.failing().items()]
        return "; ".join([*([self._trouble] if self._trouble else []), *wrong]) or OK

    def families(self) -> Iterator[Metric]:
        """Alerts and the service level for the metrics."""
        yield from self.level.families()
        firing = GaugeMetricFamily("knhk_alerts_firing", "Alerts that are firing.", labels=("severity",))
        for severity in SEVERITIES:
            firing.add_metric((severity,), sum(one.severity == severity for one in self._ledger.firing.values()))
        told = CounterMetricFamily(
            "knhk_alert_notifications", "Messages to alert channels.", labels=("channel", "result")
        )
        for labels, count in self._counts.items():
            told.add_metric(labels, count)
        yield from (firing, told)

    # -- what operators ask and say

    def service_level(self) -> dict[str, Any]:
        """The service level over all windows."""
        return self.level.report()

    def alerts(self) -> dict[str, Any]:
        """What fires, what was over last, silences and channels."""
        now_ns = self._clock.now_ns()
        silences = [one for one in self._ledger.silences.values() if one.until_ns > now_ns]
        return {
            "firing": [dict(shown(one)) for one in self._ledger.firing.values()],
            "resolved": [dict(shown(one)) for one in reversed(self._ledger.resolved[-_MOST_SHOWN:])],
            "silences": msgspec.to_builtins(silences),
            "channels": [{"type": one.kind, **msgspec.to_builtins(one.audience)} for one in self._channels],
        }

    async def test(self, channel: str = "") -> dict[str, str]:
        """Send a test alert to a channel, or to all; what each said, empty if it took it. Raises NotFound."""
        chosen = [one for one in self._channels if channel in ("", one.audience.channel)]
        if not chosen:
            names = ", ".join(one.audience.channel for one in self._channels) or "none"
            wanted = f"there is no alert channel {channel!r}" if channel else "there is no alert channel"
            raise NotFound(wanted, hint=f"Channels (monitoring.alert_channels): {names}.")
        now_ns = self._clock.now_ns()
        said = await asyncio.gather(*(try_out(one, self._node, now_ns) for one in chosen))
        return {one.audience.channel: text for one, text in zip(chosen, said, strict=True)}

    async def silence(self, pattern: str, for_ns: int, comment: str, actor: str) -> Silence:
        """Tell nobody of alerts whose name matches, for a while; durable. Raises InvalidParameter, Unavailable."""
        if not pattern or for_ns <= 0:
            raise InvalidParameter("a silence needs a pattern and a time")
        if len(self._ledger.silences) >= _MOST_SILENCES:
            raise InvalidParameter(f"there are {_MOST_SILENCES} silences already")
        now_ns = self._clock.now_ns()
        self._numbers += 1
        made = Silence(f"s{now_ns}-{self._numbers}", pattern, now_ns + for_ns, now_ns, comment, actor)
        await self.silencing.store(FOLD, {_SILENCE + made.id.encode(): msgspec.msgpack.encode(made)}, 0)
        self._ledger.silences[made.id] = made
        return made

    async def unsilence(self, silence_id: str) -> None:
        """End a silence. Raises NotFound, Unavailable."""
        if silence_id not in self._ledger.silences:
            raise NotFound(f"there is no silence {silence_id!r}", hint="See `knhk alerts list`.")
        await self.silencing.store(FOLD, {_SILENCE + silence_id.encode(): None}, 0)
        del self._ledger.silences[silence_id]

    # -- the work

    async def _keep_level(self) -> None:
        await self._until_done(self._load_level)
        while True:
            await self._clock.sleep(_STORE_S)
            if self.shared is None:
                await self._store_level()
            else:
                await self._until_done(self.shared.tend)

    async def _load_level(self) -> None:
        if self.shared is None:
            await self.level.load(self._projections, self._journal, self._partition, self._progress)
        else:
            await self.shared.tend()

    async def _store_level(self) -> None:
        """Store the history at a moment at which the projector rests, which under load is between its batches."""
        if self.shared is not None:
            await self.shared.store()
            return
        for _ in range(_STORE_TRIES):
            try:
                if await self.level.store(self._projections, self._progress):
                    return
            except KnhkError:
                return  # The disk is full: the same rows are changed again soon, or made up for after a restart.
            await self._clock.sleep(_STORE_TRY_S)

    async def _watch(self) -> None:
        loaded = False
        while True:
            if not loaded or self.shared is not None:
                await self._until_done(self._load_alerts if not loaded else self._load_silences)
            loaded = self.leads()
            if not loaded:
                await self._clock.sleep(self._interval_s)
                continue
            try:
                self._ledger.observe(self._conditions(), self._clock.now_ns())
                await self._store_alerts()
                await self._tell_all()
                self._trouble = ""
            except KnhkError as error:
                self._trouble = f"alerts cannot be stored: {error.message}"
            except Exception as error:  # a source that fails must not end all alerting
                self._log.exception("watching the service level failed")
                self._trouble = f"{type(error).__name__}: {error}"
            await self._clock.sleep(self._interval_s)

    async def _load_alerts(self) -> None:
        self._ledger.load(await self._stored(_INCIDENT, Incident), await self._stored(_SILENCE, Silence))

    async def _load_silences(self) -> None:
        """Other nodes take them in too."""
        self._ledger.silences = {one.id: one for one in await self._stored(_SILENCE, Silence)}

    async def _stored(self, prefix: bytes, kind: type[_Row]) -> list[_Row]:
        found: list[_Row] = []
        before: bytes | None = None
        while True:
            page = await self._projections.rows(FOLD, prefix, before=before, limit=_PAGE)
            for _, raw in page:
                try:
                    found.append(msgspec.msgpack.decode(raw, type=kind))
                except msgspec.DecodeError as error:
                    self._log.warning("a stored alert cannot be read", reason=str(error))
            if len(page) < _PAGE:
                return found
            before = page[-1][0]

    async def _until_done(self, work: Callable[[], Any]) -> None:
        while True:
            try:
                await work()
                return
            except KnhkError as error:
                self._trouble = f"what was stored cannot be read: {error.message}"
            await self._clock.sleep(self._interval_s)

    def _conditions(self) -> list[Condition]:
        return [condition for source in self.sources for condition in source()]

    def _burning(self) -> Iterator[Condition]:
        if self.level.complete:
            yield from (found for one in self.level.objectives if (found := burning(one)) is not None)

    def _unwell(self) -> Iterator[Condition]:
        """The checks that have been bad for a while. This room's own is left out: it could only tell itself."""
        now_ns = self._clock.now_ns()
        bad = {room: text for room, text in self.checks().items() if text not in (OK, ABSENT) and room != ROOM}
        self._unwell_since_ns = {room: self._unwell_since_ns.get(room, now_ns) for room in bad}
        for room, text in bad.items():
            if now_ns - self._unwell_since_ns[room] >= _UNWELL_NS:
                severity: Severity = "critical" if room == _VITAL else "warning"
                yield Condition(f"health.{room}", severity, f"{room} is not well", {"what": text})

    async def _store_alerts(self) -> None:
        changed, self._ledger.changed = self._ledger.changed, {}
        rows = {
            _INCIDENT + name.encode(): None if one is None else msgspec.msgpack.encode(one)
            for name, one in changed.items()
        }
        try:
            if rows:
                await self._projections.store(FOLD, rows, 0)
        except KnhkError:
            self._ledger.changed = {**changed, **self._ledger.changed}
            raise

    async def _tell_all(self) -> None:
        """One task for each channel that has something to be told and is not being told yet.

        Raises Fenced if another node leads by now: that one tells.
        """
        if self.shared is not None:
            await self._projections.store(FOLD, {}, 0)
        for channel in self._channels:
            name = channel.audience.channel
            if (task := self._telling.get(name)) is None or task.done():
                fires, over = self._ledger.to_tell(channel.audience, self._clock.now_ns())
                if fires or over:
                    self._telling[name] = asyncio.create_task(self._tell(channel, fires, over), name=f"tell-{name}")

    async def _tell(self, channel: Channel, fires: list[Incident], over: list[Incident]) -> None:
        name = channel.audience.channel
        try:
            await channel.tell(fires, over)
        except Exception as error:
            after_ns = error.after_ns if isinstance(error, NotTold) else 0
            reason = str(error) if isinstance(error, NotTold) else f"{type(error).__name__}: {error}"
            self._counts[name, "failed"] += 1
            self._log.warning("an alert was not taken", channel=name, reason=reason)
            self._ledger.was_not_told([*fires, *over], name, self._clock.now_ns(), reason, after_ns)
        else:
            self._counts[name, "told"] += 1
            now_ns = self._clock.now_ns()
            self._ledger.was_told(fires, name, now_ns, over=False)
            self._ledger.was_told(over, name, now_ns, over=True)
        try:
            await self._store_alerts()
        except KnhkError as error:
            self._trouble = f"alerts cannot be stored: {error.message}"
