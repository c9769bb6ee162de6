"""What can change how many replicas run: members of a StatefulSet, or processes of one machine."""

from collections.abc import Sequence
from typing import Protocol


class Scaler(Protocol):
    """Implementations say in `name` what they are, for receipts and people."""

    @property
    def name(self) -> str:
        """One word, such as `kubernetes`, `processes` or `dry-run`."""
        ...

    async def current(self) -> int:
        """How many replicas are wanted now: what was last asked for, whether or not all of them run already.

        Raises Unavailable if that cannot be known; then nothing is changed.
        """
        ...

    async def scale_to(self, count: int) -> None:
        """Want `count` replicas (at least 1); returns when that is accepted, not when all of them run.

        When fewer are wanted, the youngest go first: those of the highest ordinal. Whoever calls has drained them, but
        an implementation MUST stop them gracefully all the same. Raises Unavailable, Refused or Conflict: then nothing
        was changed, or it is not known whether it was, and `current` tells.
        """
        ...


class Processes(Scaler, Protocol):
    """What changes the number of processes of this machine."""

    @property
    def most(self) -> int:
        """More processes than this cannot be: each needs a partition."""
        ...

    def others(self) -> Sequence[str]:
        """The URLs at which the APIs of the other processes answer this one."""
        ...
