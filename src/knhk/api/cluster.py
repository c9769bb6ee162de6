"""Routes of the cluster: who is there, who owns what, drain a node, and let all take part again."""

from typing import Annotated, Any, Protocol

from litestar import get, post
from litestar.params import PathParameter

from knhk.api.description import problem_responses

_CHANGES = problem_responses(404, 503)


class ClusterFace(Protocol):
    """What the faces see of the cluster."""

    async def status(self) -> dict[str, Any]:
        """Nodes, partitions, leader, etcd; what is not known says so."""
        ...

    def here(self) -> dict[str, Any]:
        """What this node says of itself: its lease, and what its partitions do."""
        ...

    async def drain(self, node_id: str, *, drained: bool) -> None:
        """Let a node own nothing, or take part again. Raises NotFound, CoordinationUnavailable."""
        ...

    async def rebalance(self) -> int:
        """Let all nodes take part; how many partitions will move."""
        ...


def cluster_handlers(cluster: ClusterFace) -> list[Any]:
    """The routes."""

    @get("/cluster", summary="State of the cluster")
    async def get_cluster() -> dict[str, Any]:
        """Nodes, partitions with owners and epochs, and etcd; `known` says how far that is to be believed."""
        return await cluster.status()

    @get("/cluster/here", summary="This node's part of the cluster", sync_to_thread=False)
    def get_here() -> dict[str, Any]:
        """The lease of the node that is asked, and what its partitions do: known even without etcd."""
        return cluster.here()

    @post("/cluster/nodes/{node_id:str}/drain", status_code=202, summary="Drain a node", responses=_CHANGES)
    async def drain_node(node_id: Annotated[str, PathParameter(description="The node's name.")]) -> dict[str, Any]:
        """Its partitions go to the other nodes. It stays a member, and answers."""
        await cluster.drain(node_id, drained=True)
        return {"node_id": node_id, "drained": True}

    @post("/cluster/nodes/{node_id:str}/undrain", status_code=202, summary="End a drain", responses=_CHANGES)
    async def undrain_node(node_id: Annotated[str, PathParameter(description="The node's name.")]) -> dict[str, Any]:
        """The node takes its share again."""
        await cluster.drain(node_id, drained=False)
        return {"node_id": node_id, "drained": False}

    @post("/cluster/rebalance", status_code=202, summary="Let all nodes take part", responses=problem_responses(503))
    async def rebalance() -> dict[str, Any]:
        """Ends all drains. Partitions move by themselves to where they belong; `moving` says how many will."""
        return {"moving": await cluster.rebalance()}

    return [get_cluster, get_here, drain_node, undrain_node, rebalance]
