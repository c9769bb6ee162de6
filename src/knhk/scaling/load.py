"""What replicas report of themselves, and what it means for all of them together; pure.

A replica that is wanted and does not report counts as idle when replicas are added, and as unknown when they are to be
taken away, as for the HorizontalPodAutoscaler.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from knhk.scaling.decision import MOST_PLAUSIBLE, Policy, Signal


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One replica's load. Shares are of what it may use, 1 for all of it; None is not known (yet).

    `cpu` is the larger of two shares: of its processors, and of the one that its event loop can use at most. `runs` and
    `steps` are those under way and those that wait for a place, by the places; `wait_s` is in what time 99 % of
    them had one in the last minutes. `cores` are in use; `cpu_s` and `work_s` (time of steps) grow until a restart.
    """

    replica: str
    cpu: float | None
    memory: float | None
    runs: float | None
    steps: float | None
    wait_s: float | None
    cores: float | None = None
    cpu_s: float = 0.0
    work_s: float = 0.0


class Fleet(msgspec.Struct, frozen=True):
    """The loads of all replicas that answered, and why the others did not."""

    loads: tuple[Load, ...]
    silent: Mapping[str, str] = {}


def signals_of(fleet: Fleet, current: int, policy: Policy) -> tuple[list[Signal], list[str]]:
    """What was measured, and what could not be. `current` is how many replicas are wanted."""
    unknown = [f"{name}: {why}" for name, why in fleet.silent.items()]
    missing = current - len(fleet.loads) - len(fleet.silent)
    if missing > 0:
        unknown.append(f"{missing} of {current} replicas are not there")
    found = [
        _mean("cpu", fleet, current, policy.target_cpu, lambda one: one.cpu),
        _mean("memory", fleet, current, policy.target_memory, lambda one: one.memory),
        _mean("runs", fleet, current, 1.0, lambda one: one.runs),
        _mean("steps", fleet, current, 1.0, lambda one: one.steps),
    ]
    if policy.target_wait_s > 0:
        waits = [one.wait_s for one in fleet.loads]
        worst = (
            None if any(not _is_plausible(one) for one in waits) else max(waits, default=None, key=lambda one: one or 0)
        )
        found.append(
            Signal("wait", worst, policy.target_wait_s, "seconds until a place was free, of the worst replica")
        )
    return found, unknown


def _mean(name: str, fleet: Fleet, current: int, target: float, of: Callable[[Load], float | None]) -> Signal:
    """The load of all together, as a share of what the wanted replicas have; None if one's is not known."""
    values = [of(one) for one in fleet.loads]
    strange = [one.replica for one, value in zip(fleet.loads, values, strict=True) if not _is_plausible(value)]
    if strange or not values or current < 1:
        return Signal(name, None, target, f"not known of {', '.join(strange) or 'any replica'}")
    why = ", ".join(f"{one.replica} {value:.2f}" for one, value in zip(fleet.loads[:8], values, strict=False))
    return Signal(name, sum(value or 0.0 for value in values) / current, target, why)


def _is_plausible(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and 0 <= value <= MOST_PLAUSIBLE


def increase(before: float, after: float) -> float:
    """How far a counter has grown. After a restart it begins at 0 again, as Prometheus's `increase` takes it."""
    if not (math.isfinite(before) and math.isfinite(after)):
        return 0.0
    return after - before if after >= before else max(0.0, after)


def used(before: Sequence[Load], after: Sequence[Load]) -> tuple[float, float]:
    """Seconds of CPU and of steps that all replicas used between two looks. One that is new counts from the next."""
    earlier = {one.replica: one for one in before}
    pairs = [(earlier[one.replica], one) for one in after if one.replica in earlier]
    cpu_s = sum(increase(one.cpu_s, other.cpu_s) for one, other in pairs)
    return cpu_s, sum(increase(one.work_s, other.work_s) for one, other in pairs)
