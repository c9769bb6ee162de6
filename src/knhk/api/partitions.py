"""Routes by which the processes of a server ask each other about partitions. They are no part of the public API."""

from typing import Any, Protocol

from litestar import get

from knhk.api.places import Places
from knhk.domain.errors import InvalidParameter, PartitionMoving
from knhk.engine.control import Control


class Here(Places, Protocol):
    """What a process knows of its own partitions."""

    async def projected_here(self, partition: int) -> bool:
        """Wait until the lists of a partition show what is committed now; False if it is not here."""
        ...


def partition_handlers(places: Here) -> list[Any]:
    """The routes."""

    @get("/partitions/{partition:int}/claims/{digest:str}", include_in_schema=False)
    async def claim(partition: int, digest: str) -> dict[str, bool]:
        """Whether an idempotency key, by its SHA-256, stands for a run of the partition."""
        try:
            return {"claimed": await _of(partition).claim(bytes.fromhex(digest)) is not None}
        except ValueError as error:
            raise InvalidParameter(f"the digest is not one: {error}") from None

    @get("/partitions/{partition:int}/projected", include_in_schema=False)
    async def projected(partition: int) -> dict[str, bool]:
        """Answers when the lists show what is committed now."""
        if not await places.projected_here(partition):
            raise _moving(partition)
        return {"projected": True}

    def _of(partition: int) -> Control:
        control = places.local(partition)
        if control is None:
            raise _moving(partition)
        return control

    return [claim, projected]


def _moving(partition: int) -> PartitionMoving:
    return PartitionMoving(f"partition {partition} is not here", retry_after_s=1.0)
