"""Exact percentiles of latencies, by the nearest-rank method: every figure is a latency that was really measured."""

import math
from collections.abc import Sequence

import msgspec

NS_PER_MS = 1_000_000


class Latencies(msgspec.Struct, frozen=True):
    """What is kept of a sample of latencies, in milliseconds."""

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


NONE_MEASURED = Latencies(count=0, p50_ms=0.0, p90_ms=0.0, p99_ms=0.0, max_ms=0.0)


def nearest_rank(ordered: Sequence[int], percent: float) -> int:
    """The smallest value with at least `percent` of the sample at or below it; `ordered` ascends and is not empty."""
    if not ordered:
        raise ValueError("no percentile of an empty sample")
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be above 0 and at most 100, not {percent}")
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def summarise(sample_ns: Sequence[int]) -> Latencies:
    """Percentiles of latencies in nanoseconds, in any order."""
    if not sample_ns:
        return NONE_MEASURED
    ordered = sorted(sample_ns)
    p50, p90, p99 = (nearest_rank(ordered, percent) / NS_PER_MS for percent in (50, 90, 99))
    return Latencies(len(ordered), p50, p90, p99, ordered[-1] / NS_PER_MS)
