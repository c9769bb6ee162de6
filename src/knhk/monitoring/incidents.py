"""From conditions to incidents: what fires once, is told to whom, and resolves; pure, and all of it can be stored.

condition holds ──> incident opens ──> told to each channel whose turn has come ──> condition is gone for a while
                     (not within the cooldown of the last one)                          ──> incident resolves, told
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from knhk.monitoring.objectives import SEVERITIES, Condition, Severity

HISTORY_NS: Final = 30 * 24 * 3600 * 1_000_000_000
MOST_RESOLVED: Final = 1_000
_FIRST_PAUSE_NS: Final = 5_000_000_000
_LONGEST_PAUSE_NS: Final = 300_000_000_000


class Told(msgspec.Struct):
    """What one channel was told of an incident. Times are Unix time in nanoseconds, 0 where they have not come."""

    fired_at_ns: int = 0
    resolved_at_ns: int = 0
    failures: int = 0
    next_at_ns: int = 0
    error: str = ""


class Incident(msgspec.Struct):
    """One time that a condition held on a node. `clear_since_ns` is since when it does not, while that may change."""

    name: str
    severity: Severity
    summary: str
    details: dict[str, str]
    started_at_ns: int
    resolved_at_ns: int = 0
    clear_since_ns: int = 0
    told: dict[str, Told] = {}
    node: str = ""

    @property
    def id(self) -> str:
        """What it is known by everywhere, the same over restarts."""
        return f"{self.name}/{self.started_at_ns}"

    @property
    def firing(self) -> bool:
        """Whether it has not been resolved."""
        return not self.resolved_at_ns


class Silence(msgspec.Struct, frozen=True):
    """Alerts whose name matches the pattern (`*` for anything) are not told until then."""

    id: str
    pattern: str
    until_ns: int
    created_at_ns: int
    comment: str = ""
    actor: str = ""

    def covers(self, incident: Incident, now_ns: int) -> bool:
        """Whether the incident is not to be told now."""
        return now_ns < self.until_ns and fnmatchcase(incident.name, self.pattern)


class Audience(msgspec.Struct, frozen=True):
    """Who a channel is for: incidents at least this severe, that have been firing for at least `after_ns`."""

    channel: str
    least_severity: Severity = "warning"
    after_ns: int = 0


class Ledger:
    """All incidents that are firing or not long gone. Changed incidents are collected for the store."""

    def __init__(self, node: str, *, cooldown_ns: int, resolve_after_ns: int) -> None:
        self._node = node
        self._cooldown_ns, self._resolve_after_ns = cooldown_ns, resolve_after_ns
        self.firing: dict[str, Incident] = {}
        self.resolved: list[Incident] = []
        self.silences: dict[str, Silence] = {}
        self.changed: dict[str, Incident | None] = {}

    def load(self, incidents: Iterable[Incident], silences: Iterable[Silence]) -> None:
        """What was stored, in place of all that is known."""
        self.firing, self.resolved, self.silences, self.changed = {}, [], {}, {}
        for incident in sorted(incidents, key=lambda one: one.started_at_ns):
            if incident.firing:
                self.firing[incident.name] = incident
            else:
                self.resolved.append(incident)
        self.silences.update({silence.id: silence for silence in silences})

    def observe(self, conditions: Iterable[Condition], now_ns: int) -> None:
        """Open and resolve incidents, given all conditions that hold now."""
        holding = {condition.name: condition for condition in conditions}
        for name, condition in holding.items():
            incident = self.firing.get(name)
            if incident is not None:
                self._still(incident, condition)
            elif not self._cools_down(name, now_ns):
                details = dict(condition.details)
                incident = Incident(name, condition.severity, condition.summary, details, now_ns, node=self._node)
                self.firing[name] = self._changes(incident)
        for incident in [one for name, one in self.firing.items() if name not in holding]:
            self._gone(incident, now_ns)
        self._forget(now_ns)

    def _still(self, incident: Incident, condition: Condition) -> None:
        """It holds: the newest text counts, and a severity only ever rises."""
        severity = max(incident.severity, condition.severity, key=SEVERITIES.index)
        if incident.clear_since_ns or severity != incident.severity:
            self._changes(incident)
        incident.clear_since_ns, incident.severity = 0, severity
        incident.summary, incident.details = condition.summary, dict(condition.details)

    def _gone(self, incident: Incident, now_ns: int) -> None:
        if not incident.clear_since_ns:
            incident.clear_since_ns = now_ns
            self._changes(incident)
        if now_ns - incident.clear_since_ns >= self._resolve_after_ns:
            incident.resolved_at_ns = now_ns
            del self.firing[incident.name]
            self.resolved.append(self._changes(incident))

    def _cools_down(self, name: str, now_ns: int) -> bool:
        last = next((one for one in reversed(self.resolved) if one.name == name), None)
        return last is not None and now_ns - last.resolved_at_ns < self._cooldown_ns

    def _forget(self, now_ns: int) -> None:
        surplus = max(0, len(self.resolved) - MOST_RESOLVED)
        for place, incident in enumerate(list(self.resolved)):
            if place < surplus or now_ns - incident.resolved_at_ns > HISTORY_NS:
                self.resolved.remove(incident)
                self.changed[incident.id] = None
        for silence in [one for one in self.silences.values() if one.until_ns <= now_ns - HISTORY_NS]:
            del self.silences[silence.id]

    def _changes(self, incident: Incident) -> Incident:
        self.changed[incident.id] = incident
        return incident

    # -- who is told

    def to_tell(self, audience: Audience, now_ns: int) -> tuple[list[Incident], list[Incident]]:
        """The incidents that a channel is to be told now: those that fire, and those that are over."""
        fires = [one for one in self.firing.values() if self._fires(one, audience, now_ns)]
        over = [one for one in self.resolved if self._is_over(one, audience.channel, now_ns)]
        return fires, over

    def _fires(self, incident: Incident, audience: Audience, now_ns: int) -> bool:
        told = incident.told.get(audience.channel, Told())
        return (
            not told.fired_at_ns
            and told.next_at_ns <= now_ns
            and SEVERITIES.index(incident.severity) >= SEVERITIES.index(audience.least_severity)
            and now_ns - incident.started_at_ns >= audience.after_ns
            and not any(silence.covers(incident, now_ns) for silence in self.silences.values())
        )

    def _is_over(self, incident: Incident, channel: str, now_ns: int) -> bool:
        """Only who was told of the beginning is told of the end, even if that is silenced by now."""
        told = incident.told.get(channel)
        return told is not None and told.fired_at_ns > 0 and not told.resolved_at_ns and told.next_at_ns <= now_ns

    def failing(self) -> dict[str, str]:
        """The channels that have not taken what they should have been told by now, and why."""
        return {
            channel: told.error
            for incident in (*self.resolved, *self.firing.values())
            for channel, told in incident.told.items()
            if told.error and (incident.firing or told.fired_at_ns)
        }

    def was_told(self, incidents: Iterable[Incident], channel: str, now_ns: int, *, over: bool) -> None:
        """A channel has taken it."""
        for incident in incidents:
            told = incident.told.setdefault(channel, Told())
            if over:
                told.resolved_at_ns = now_ns
            else:
                told.fired_at_ns = now_ns
            told.failures, told.next_at_ns, told.error = 0, 0, ""
            self._changes(incident)

    def was_not_told(self, incidents: Iterable[Incident], channel: str, now_ns: int, error: str, after_ns: int) -> None:
        """A channel has not taken it: it is told again after a pause that doubles, and not before `after_ns`."""
        for incident in incidents:
            told = incident.told.setdefault(channel, Told())
            pause = min(_LONGEST_PAUSE_NS, _FIRST_PAUSE_NS << min(told.failures, 16))
            told.failures += 1
            told.next_at_ns, told.error = now_ns + max(pause, after_ns), error
            self._changes(incident)


def shown(incident: Incident) -> Mapping[str, object]:
    """An incident as data for people and machines."""
    fields: dict[str, object] = msgspec.to_builtins(incident)
    return fields | {"id": incident.id, "state": "firing" if incident.firing else "resolved"}
