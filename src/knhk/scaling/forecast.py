"""What is to come: from the schedules, and from the same hour of other days; pure, and simple enough to be told.

    scheduled = the CPU of now + what cron starts in the next 10 minutes beyond what it started in the last 10
    seasonal  = the CPU of the coming hour, as it was a day ago or a week ago, whichever was more

What a schedule starts counts as firings x mean time of steps of a run of that definition x CPU a second of steps.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from knhk.domain.triggers import Cron, times_between
from knhk.scaling.decision import Signal
from knhk.scaling.load import Load

HORIZON_S: Final = 600
HOUR_S: Final = 3_600
_HORIZON_NS: Final = HORIZON_S * 1_000_000_000
_HOUR_NS: Final = HOUR_S * 1_000_000_000
_LEAST_COVERED_S: Final = 600.0
_DAY_H: Final = 24
_WEEK_H: Final = 168
_MOST_FIRINGS: Final = 2 * HORIZON_S
_LEAST_CORES: Final = 0.02
_NAMED: Final = 3


class Hour(msgspec.Struct, array_like=True):
    """What all replicas used in an hour, and how much of it was looked at; seconds."""

    cpu_s: float = 0.0
    work_s: float = 0.0
    covered_s: float = 0.0


class Mean(msgspec.Struct, array_like=True):
    """The runs of one definition and the time of their steps, older ones fading."""

    runs: float = 0.0
    work_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Mean time of the steps of a run; 0 before the first."""
        return self.work_s / self.runs if self.runs else 0.0


class Firings(msgspec.Struct, frozen=True):
    """How often the schedules of a definition fire in the coming time, and how often they did in the time before."""

    definition: str
    coming: int
    before: int


def firings(schedules: Sequence[tuple[str, Cron]], now_ns: int) -> list[Firings]:
    """What fires in the next 10 minutes and did in the last, by definition; those that do neither are left out."""
    counts: dict[str, list[int]] = {}
    for definition, cron in schedules:
        found = counts.setdefault(definition, [0, 0])
        found[0] += len(times_between(cron, now_ns, now_ns + _HORIZON_NS, _MOST_FIRINGS))
        found[1] += len(times_between(cron, now_ns - _HORIZON_NS, now_ns, _MOST_FIRINGS))
    return [Firings(name, coming, before) for name, (coming, before) in sorted(counts.items()) if coming or before]


def scheduled(
    found: Sequence[Firings],
    means: Mapping[str, Mean],
    hours: Mapping[int, Hour],
    loads: Sequence[Load],
    current: int,
    target: float,
) -> Signal | None:
    """The CPU of the coming minutes if the schedules bring more than they have just brought; None if they do not."""
    extra_s = sum((one.coming - one.before) * means[one.definition].seconds for one in found if one.definition in means)
    capacity, now_cores = _capacity(loads), sum(one.cores or 0.0 for one in loads)
    work_s, cpu_s = (sum(getattr(hour, name) for hour in hours.values()) for name in ("work_s", "cpu_s"))
    if extra_s <= 0 or capacity <= 0 or current < 1 or work_s <= 0:
        return None
    extra_cores = extra_s * min(cpu_s / work_s, 1e3) / HORIZON_S
    most = sorted(found, key=lambda one: -(one.coming - one.before) * means.get(one.definition, Mean()).seconds)
    named = ", ".join(
        f"{one.definition} fires {one.coming} times (before: {one.before}) of {means[one.definition].seconds:.3g} s"
        for one in most[:_NAMED]
        if one.definition in means and one.coming > one.before
    )
    why = f"in the next {HORIZON_S // 60} minutes {named}: {extra_cores:.3g} cores more than now"
    return Signal("scheduled", (now_cores + extra_cores) / (capacity * current), target, why)


def seasonal(
    hours: Mapping[int, Hour], loads: Sequence[Load], current: int, target: float, now_ns: int
) -> Signal | None:
    """The CPU of the coming hour by the same hour of yesterday and of a week ago; None if neither is known."""
    capacity, coming = _capacity(loads), hour_of(now_ns + _HORIZON_NS)
    known = {
        text: hours[coming - back].cpu_s / hours[coming - back].covered_s
        for text, back in (("yesterday", _DAY_H), ("a week ago", _WEEK_H))
        if coming - back in hours and hours[coming - back].covered_s >= _LEAST_COVERED_S
    }
    if not known or capacity <= 0 or current < 1:
        return None
    text = max(known, key=lambda one: known[one])
    return Signal(
        "seasonal",
        known[text] / (capacity * current),
        target,
        f"the hour that begins {'now' if coming == hour_of(now_ns) else 'soon'} used {known[text]:.3g} cores {text}",
    )


def hour_of(at_ns: int) -> int:
    """The number of an hour since 1970."""
    return at_ns // _HOUR_NS


def _capacity(loads: Sequence[Load]) -> float:
    """Cores that one replica can use, as far as it shows: those in use by its share in use."""
    cores, share = sum(one.cores or 0.0 for one in loads), sum(one.cpu or 0.0 for one in loads)
    if cores < _LEAST_CORES or share <= 0:
        return 1.0
    return cores / share
