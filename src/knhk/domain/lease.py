"""Leases of remote workers as a run remembers them: the newest of each step, by the step's path."""

from collections.abc import Mapping
from typing import Self

import msgspec

from knhk.domain.event import StepStarted


class Lease(msgspec.Struct, frozen=True):
    """An attempt that was given out: how often so far, to whom last, and the token of that lease."""

    attempt: int
    deliveries: int
    worker: str
    token: int

    @classmethod
    def after(cls, known: Self | None, attempt: int, started: StepStarted) -> Self:
        """The lease that begins with this event."""
        again = known.deliveries if known is not None and known.attempt == attempt else 0
        return cls(attempt, again + 1, started.worker, started.token)


def is_leased(leases: Mapping[str, Lease], path: str, attempt: int) -> bool:
    """Whether a worker was given this very attempt."""
    lease = leases.get(path)
    return lease is not None and lease.attempt == attempt
