"""The replicas as the autoscaler sees them, whatever they are."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from knhk.scaling.load import Fleet, Load

OwnLoad = Callable[[], Awaitable[Load]]
"""What measures this process."""


class Crew(Protocol):
    """All replicas together. What cannot be known raises KnhkError."""

    def leads(self) -> bool:
        """Whether this process decides for all: where there are several, one does."""
        ...

    async def loads(self) -> Fleet:
        """What each replica has to do; those that do not answer are named."""
        ...

    def doubts(self) -> Sequence[str]:
        """Why no replica can be taken away, whatever the load: nothing, or sentences."""
        ...

    def departing(self, before: int, after: int) -> Sequence[str]:
        """Who goes when `before` replicas become `after`, and must be drained; nobody if the driver does that."""
        ...

    def members(self) -> frozenset[str]:
        """Who is there."""
        ...

    def drained(self) -> frozenset[str]:
        """Who is marked as drained, by whomever."""
        ...

    def owns(self, name: str) -> int:
        """How many partitions a replica still owns."""
        ...

    async def drain(self, name: str, *, drained: bool) -> None:
        """Have a replica give its partitions away, or take part again. Raises CoordinationUnavailable."""
        ...


class Alone:
    """Implements Crew for a process that is the only one."""

    def __init__(self, name: str, own: OwnLoad) -> None:
        self._name, self._own = name, own

    def leads(self) -> bool:
        return True

    async def loads(self) -> Fleet:
        return Fleet((await self._own(),))

    def doubts(self) -> Sequence[str]:
        return ()

    def departing(self, before: int, after: int) -> Sequence[str]:
        return ()

    def members(self) -> frozenset[str]:
        return frozenset((self._name,))

    def drained(self) -> frozenset[str]:
        return frozenset()

    def owns(self, name: str) -> int:
        return 0

    async def drain(self, name: str, *, drained: bool) -> None:
        return None
