"""One time for all nodes of a cluster: PostgreSQL's, or etcd's where there is none; a node's own clock may be wrong.

A partition's receipts never go back in time, so that whoever takes a partition over from a node whose clock was an hour
ahead would have to go on an hour ahead. A node therefore compares before it joins, when it has no partition, and goes
by their time if its own is wrong.
"""

from typing import Final, Protocol

from knhk.platform.clock import SystemClock

_ASKED: Final = 3
_TOLERANCE_NS: Final = 2_000_000_000
"""Clocks that are kept by NTP are closer than this; etcd tells its time to the second."""


class Reference(Protocol):
    """Whose time counts."""

    async def now_ns(self) -> int:
        """Unix time in ns. Raises KnhkError."""
        ...


async def go_by(reference: Reference, clock: SystemClock) -> str:
    """Correct a clock if it is wrong by more than two seconds; in words how wrong the machine's is, empty if it is not.

    Raises what the reference raises.
    """
    offset_ns, about_ns = 0, _TOLERANCE_NS << 20
    for _ in range(_ASKED):  # the quickest answer says it best
        asked = clock.now_ns()
        there = await reference.now_ns()
        took = clock.now_ns() - asked
        if took < about_ns:
            offset_ns, about_ns = there - asked - took // 2, took
    if abs(offset_ns) > _TOLERANCE_NS + about_ns:
        clock.correct(offset_ns)
    return describe(clock)


def describe(clock: SystemClock) -> str:
    """How wrong the machine's clock is, if this one was corrected."""
    if abs(clock.corrected_ns) <= _TOLERANCE_NS:
        return ""
    seconds, way = abs(clock.corrected_ns) / 1e9, "ahead of" if clock.corrected_ns < 0 else "behind"
    return f"this machine's clock is {seconds:.1f} s {way} the cluster's, by which this node goes: set it right"
