"""The replicas as the autoscaler sees them, whatever they are."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from knhk.scaling.asking import Asking
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


class Machine:
    """Implements Crew for a process that decides for its machine. `others` are the APIs of the other processes, if any.

    Nobody is drained here: whoever changes the number of processes does that.
    """

    def __init__(self, own: OwnLoad, asking: Asking, others: Callable[[], Sequence[str]]) -> None:
        self._own, self._asking, self._others = own, asking, others

    def leads(self) -> bool:
        return True

    async def loads(self) -> Fleet:
        apis = self._others()
        own, answers = await asyncio.gather(self._own(), asyncio.gather(*(self._asking.ask(api) for api in apis)))
        found = dict(zip(apis, answers, strict=True))
        # The processes of a machine share its name.
        loads = [msgspec.structs.replace(one, replica=api) for api, one in found.items() if isinstance(one, Load)]
        return Fleet((own, *loads), {api: why for api, why in found.items() if isinstance(why, str)})

    def doubts(self) -> Sequence[str]:
        return ()

    def departing(self, before: int, after: int) -> Sequence[str]:
        return ()

    def members(self) -> frozenset[str]:
        return frozenset()

    def drained(self) -> frozenset[str]:
        return frozenset()

    def owns(self, name: str) -> int:
        return 0

    async def drain(self, name: str, *, drained: bool) -> None:
        return None
