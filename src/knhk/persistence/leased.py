"""Commits of a node that owns its partitions by a lease, where no store that others write to would refuse them.

A node whose process was stopped does not know, when it goes on, that another one has its partitions by now. So nothing
is acknowledged that was not durable while the lease was certainly alive.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from knhk.domain.errors import Fenced
from knhk.ports.append import Append, Commit, Ownership
from knhk.ports.environment import PublicKey

Arrived = Callable[[int, int, float], Awaitable[bool]]
"""Waits until a block, by partition and height, is elsewhere too; False if it is not after so many seconds."""
_LOOK_S: Final = 0.5


class LeasedAppend:
    """Implements ports.append.Append over a store. `holds` says whether this node certainly owns a partition now.

    With `arrived` a commit counts only when it is elsewhere too.
    """

    def __init__(self, store: Append, holds: Callable[[int], bool], arrived: Arrived | None = None) -> None:
        self._store, self._holds, self._arrived = store, holds, arrived

    async def acquire(self, partition: int) -> Ownership:
        self._require(partition)
        return await self._store.acquire(partition)

    async def register_key(self, key: PublicKey) -> None:
        await self._store.register_key(key)

    async def append(self, commit: Commit) -> None:
        partition, height = commit.block.partition, commit.block.height
        self._require(partition)
        await self._store.append(commit)
        self._require(partition)
        while self._arrived is not None and not await self._arrived(partition, height, _LOOK_S):
            self._require(partition)
        self._require(partition)

    async def reopen(self) -> None:
        await self._store.reopen()

    def _require(self, partition: int) -> None:
        if not self._holds(partition):
            raise Fenced(f"partition {partition}: the lease of this node is over, and another one may have it")
