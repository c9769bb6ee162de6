"""A histogram of plain integers and one sum: cheap enough to be filled on the hot path, read when somebody asks."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

SHORT_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Bounds for what ought to take less than a second, in seconds."""


class Histogram:
    """Counts of values by upper bound, in Prometheus's sense: a value that equals a bound is in that bucket.

    `counts` has one place more than `bounds`, for what is greater than all of them. One thread writes; others may read.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value, in the unit of the bounds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.counts)


def merged(given: Sequence[Mapping[str, Histogram]]) -> dict[str, Histogram]:
    """Histograms of the same names and bounds as one of each; those of one place alone as they are."""
    if len(given) == 1:
        return dict(given[0])
    total: dict[str, Histogram] = {}
    for histograms in given:
        for name, one in histograms.items():
            sum_of = total.setdefault(name, Histogram(one.bounds))
            sum_of.counts = [mine + more for mine, more in zip(sum_of.counts, one.counts, strict=True)]
            sum_of.total += one.total
    return total


def quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """The value below which `share` (0 to 1) of the counted values lie, None if there are none.

    Linear within a bucket that begins at the bound below (the first at 0), as Prometheus's histogram_quantile; what is
    beyond the last bound is told as that bound.
    """
    total = sum(counts)
    if not total:
        return None
    rank, seen, lower = share * total, 0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if seen + count >= rank and count:
            return lower + (bound - lower) * (rank - seen) / count
        seen, lower = seen + count, bound
    return bounds[-1]
