"""The section `cluster`: several nodes as one. docs/cluster.md says how."""

from pydantic import Field

from knhk.config.values import Duration, Section
from knhk.domain.units import SECOND


class Cluster(Section):
    """Several nodes as one: needs etcd. The journal is in PostgreSQL (`persistence.url`), or each node has its own."""

    mode: bool = Field(default=False, description="Run as one node of a cluster.")
    etcd: tuple[str, ...] = Field(
        default=(),
        description="URLs of etcd's members, such as `http://etcd-0:2379`; without any the node works alone.",
    )
    name: str = Field(
        default="knhk",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="The cluster's name in etcd, so that several can share one etcd.",
    )
    partitions: int = Field(
        default=64,
        ge=1,
        le=1024,
        description="Partitions of a journal in PostgreSQL; the same on every node, and never changed. Where each node "
        "has its own journal, that is one partition.",
    )
    lease_ttl_ns: Duration = Field(
        default=5 * SECOND,
        ge=2 * SECOND,
        description="How long a node may be silent before others take its partitions; whole seconds.",
    )
    handover_grace_ns: Duration = Field(
        default=5 * SECOND, ge=0, description="How long a partition that moves waits for its runs to end or to rest."
    )
    takeover: bool = Field(
        default=False,
        description="Where each node has its own journal: whether others may restore that of a lost node from what was "
        "shipped to `recovery.backup_to`, without what had not arrived there. The same on every node.",
    )
    advertise: str = Field(
        default="",
        description="URL at which the other nodes reach this node's API.",
        json_schema_extra={"default": "http://<api.host>:<api.port>, the host's name if it listens everywhere"},
    )
