"""Routes by which the processes of a server ask each other about partitions. They are no part of the public API."""

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import msgspec
from litestar import get, post
from litestar.params import Body

from knhk.api.places import HOME, Places
from knhk.api.router import Router
from knhk.domain.errors import InvalidParameter, PartitionMoving
from knhk.engine.control import Control
from knhk.engine.signals import Apart, Published
from knhk.engine.topic_rows import KeptEvent


class Here(Places, Protocol):
    """What a process knows of its own partitions."""

    async def projected_here(self, partition: int) -> bool:
        """Wait until the lists of a partition show what is committed now; False if it is not here."""
        ...


class KeptBody(msgspec.Struct, forbid_unknown_fields=True):
    """An event on its way to a partition that has rows of its own."""

    event: str
    correlate: str
    id: str
    keep_ns: int
    actor: str
    data: Any = None


async def taken_in(control: Control, body: KeptBody) -> Published:
    """Publish it in the partition of a control."""
    return await control.signals.publish(
        body.event, body.correlate, body.data, event_id=body.id, keep_ns=body.keep_ns, actor=body.actor
    )


def apart_of(router: Router, now_ns: Callable[[], int]) -> Apart:
    """The partitions beside the leader's, where each has rows of its own."""

    async def publish(partition: int, kept: KeptEvent, data: Any, actor: str) -> Published:
        body = KeptBody(kept.event, kept.correlate, kept.id, max(0, kept.kept_until_ns - now_ns()), actor, data)

        async def here(control: Control) -> Published:
            return await taken_in(control, body)

        answer = await router.call(partition, here, "POST", f"/partitions/{partition}/events", body, repeatable=True)
        return msgspec.convert(answer, Published)

    return Apart(lambda: [one for one in range(router.places.partitions) if one != HOME], publish)


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

    @post("/partitions/{partition:int}/events", status_code=200, include_in_schema=False)
    async def publish(partition: int, data: Annotated[KeptBody, Body()]) -> Published:
        """Has the partition take an event in that another one keeps. The same once more does nothing."""
        return await taken_in(_of(partition), data)

    return [claim, projected, publish]


def _moving(partition: int) -> PartitionMoving:
    return PartitionMoving(f"partition {partition} is not here", retry_after_s=1.0)
