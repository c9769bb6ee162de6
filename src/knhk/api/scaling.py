"""Routes of the scaling: how many replicas there are and ought to be, and why. In a cluster the leader answers."""

from typing import Any, Protocol

import msgspec
from litestar import get


class ScalingFace(Protocol):
    """What the faces see of the scaling."""

    def status(self) -> dict[str, Any]: ...

    def explain(self) -> dict[str, Any]: ...

    async def own(self) -> msgspec.Struct:
        """The load of this process."""
        ...


def scaling_handlers(scaling: ScalingFace) -> list[Any]:
    """The routes."""

    @get("/scaling", summary="Replicas: how many, and why")
    async def get_scaling() -> dict[str, Any]:
        """The number of replicas, the last look at the load and the last decisions."""
        return scaling.status()

    @get("/scaling/explain", summary="What the number of replicas comes from")
    async def explain_scaling() -> dict[str, Any]:
        """The status, with every signal, the load of each replica, and what schedules and other days let expect."""
        return scaling.explain()

    @get("/scaling/load", summary="The load of this node")
    async def get_load() -> dict[str, Any]:
        """CPU, memory, places for runs and steps, and how long they were waited for, on this node alone."""
        return dict(msgspec.to_builtins(await scaling.own()))

    return [get_scaling, explain_scaling, get_load]
