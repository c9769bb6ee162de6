"""The decision: from what was measured, what is allowed and what was decided before to a number of replicas; pure.

Each signal is a load of all replicas together, told as what one of them would have on average, and a target for it.
The formula, the tolerance of 10 %, the largest of several signals, the rule that what is unknown never takes a replica
away, and the limit of twice as many or four more at once are those of the Kubernetes HorizontalPodAutoscaler
(kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale, "Algorithm details" and "Default behavior"):

    desired = ceil(replicas x value / target)

Taking away has a margin more: the replicas that stay must be below the target by the tolerance. So there is a band in
which nothing happens, and a load that varies by less than a ninth never makes the number go up and down.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

TOLERANCE: Final = 0.1
MOST_PLAUSIBLE: Final = 1e6
"""A load of so many times what is possible is no measurement."""
_MORE_AT_ONCE: Final = 4
_ROUNDING: Final = 1e-9

Held = Literal["", "limits", "step", "unknown", "cooldown", "clock"]
"""What kept the number from being what the signals ask for."""


class Policy(msgspec.Struct, frozen=True):
    """What is allowed: targets are shares (0 to 1), times in ns."""

    min_replicas: int = 1
    max_replicas: int = 100
    target_cpu: float = 0.7
    target_memory: float = 0.7
    target_wait_s: float = 1.0
    up_cooldown_ns: int = 300_000_000_000
    down_cooldown_ns: int = 600_000_000_000


class Signal(msgspec.Struct, frozen=True):
    """One measurement: `value` in the unit of `target`, None if it is not known. `why` says where it comes from."""

    name: str
    value: float | None
    target: float
    why: str = ""


class Judged(msgspec.Struct, frozen=True):
    """A signal and how many replicas it asks for; None if it is not known, or absurd."""

    signal: Signal
    desired: int | None


class Past(msgspec.Struct, frozen=True):
    """A decision that was made before."""

    at_ns: int
    before: int
    after: int


class Decision(msgspec.Struct, frozen=True):
    """How many replicas there ought to be, and why in a sentence. `desired` is what the signals alone ask for."""

    current: int
    wanted: int
    reason: str
    desired: int
    held: Held = ""
    signals: tuple[Judged, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return self.wanted != self.current


def decide(
    signals: Sequence[Signal],
    unknown: Sequence[str],
    current: int,
    policy: Policy,
    history: Sequence[Past],
    now_ns: int,
) -> Decision:
    """What to do with `current` replicas. `unknown` says what could not be measured: it forbids to take any away.

    Never outside the limits, never within a cooldown; with nothing known, nothing but the limits counts.
    """
    judged = tuple(Judged(one, desired_by(one, current)) for one in signals)
    unknown = (*unknown, *(_doubt(one.signal) for one in judged if one.desired is None))
    if current < 1:
        return Decision(current, current, "there are 0 replicas: somebody has switched them off", current, "", judged)
    known = [one for one in judged if one.desired is not None]
    strongest = max(known, key=lambda one: (one.desired or 0, _ratio(one.signal)), default=None)
    desired = current if strongest is None or strongest.desired is None else strongest.desired
    wanted, held, reason = _bounded(desired, current, policy, _said(strongest, current))
    if wanted < current and unknown:
        wanted, held = min(current, policy.max_replicas), "unknown"
        reason = f"{wanted} replicas stay, because not everything is known: {'; '.join(unknown)}"
    elif strongest is None and wanted == current:
        held, reason = "unknown", f"nothing is known: {'; '.join(unknown) or 'there are no measurements'}"
    found = Decision(current, wanted, reason, desired, held, judged)
    return _after_cooldown(found, policy, history, now_ns) if found.changes else found


def desired_by(signal: Signal, current: int) -> int | None:
    """How many replicas a signal asks for, at least 1; None if its value is no measurement."""
    value = signal.value
    if value is None or not math.isfinite(value) or not 0 <= value <= MOST_PLAUSIBLE or signal.target <= 0:
        return None
    ratio = value / signal.target
    if ratio > 1 + TOLERANCE:
        return math.ceil(current * ratio - _ROUNDING)
    return max(1, min(current, math.ceil(current * ratio / (1 - TOLERANCE) - _ROUNDING)))


def overloads(signals: Sequence[Signal], current: int, fewer: int) -> Signal | None:
    """The signal by which `fewer` replicas would at once be too few, None if there is none."""
    for one in signals:
        if (desired_by(one, current) is not None) and current * _ratio(one) / fewer > 1 + TOLERANCE:
            return one
    return None


def _bounded(desired: int, current: int, policy: Policy, said: str) -> tuple[int, Held, str]:
    """The number within the limits and the largest step, what held it back, and why it is so."""
    most = max(2 * current, current + _MORE_AT_ONCE)
    least = current - max(1, current // 2)
    stepped = min(max(desired, least), most)
    wanted = min(max(stepped, policy.min_replicas), policy.max_replicas)
    if wanted == desired:
        return wanted, "", said
    if wanted != stepped:
        limit = "scaling.min_replicas" if wanted == policy.min_replicas else "scaling.max_replicas"
        return wanted, "limits", f"{said}; {limit} is {wanted}"
    return wanted, "step", f"{said}; at most {abs(wanted - current)} at once"


def _after_cooldown(found: Decision, policy: Policy, history: Sequence[Past], now_ns: int) -> Decision:
    """The decision, or none while it is too early: for an increase after the last one, for a decrease after any."""
    up = found.wanted > found.current
    counted = [one.at_ns for one in history if one.after > one.before or (not up and one.after < one.before)]
    last_ns = max(counted, default=None)
    cooldown_ns = policy.up_cooldown_ns if up else policy.down_cooldown_ns
    if last_ns is None or now_ns - last_ns >= cooldown_ns:
        return found
    if now_ns < last_ns:
        why = "the last change lies in the future: the clock was set back"
        return _kept(found, "clock", why)
    left_s = (cooldown_ns - (now_ns - last_ns)) / 1e9
    return _kept(found, "cooldown", f"{found.wanted} replicas in {left_s:.0f} s at the earliest: {found.reason}")


def _kept(found: Decision, held: Held, reason: str) -> Decision:
    return msgspec.structs.replace(found, wanted=found.current, held=held, reason=reason)


def _ratio(signal: Signal) -> float:
    return (signal.value or 0.0) / signal.target


def _said(strongest: Judged | None, current: int) -> str:
    if strongest is None or strongest.desired is None:
        return f"{current} replicas"
    signal, desired = strongest.signal, strongest.desired
    ratio = _ratio(signal)
    told = f"{signal.name} is {signal.value:.3g} with a target of {signal.target:.3g}"
    if desired == current:
        return f"{told}: {current} replicas are right"
    return f"{told}: {current} x {ratio:.2f} makes {desired} replicas"


def _doubt(signal: Signal) -> str:
    if signal.value is None:
        return f"{signal.name}: {signal.why or 'not measured'}"
    return f"{signal.name}: {signal.value:g} is no measurement"
