"""What is in etcd, as data: nodes, owners, and marks of nodes that are being drained.

<prefix>/nodes/<node id>      Node as JSON, bound to the node's lease
<prefix>/owners/<partition>   Owner as JSON, bound to the owner's lease
<prefix>/drained/<node id>    a mark, until it is taken back
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from knhk.cluster.assignment import assignment
from knhk.cluster.etcd import Entry

LEADING: Final = 0
"""The owner of this partition is the leader: what must be done once is fenced like every other append."""


PROTOCOL: Final = 1
"""What nodes of this version say to each other, and write for each other. It grows with what others must understand."""
LEAST: Final = 1
"""The oldest protocol that this version still works with."""


class Node(msgspec.Struct, frozen=True):
    """A node as it describes itself. `leaving`: it is shutting down and gives its partitions away.

    `protocol` is what it speaks, `least` the oldest that it works with.
    """

    node_id: str
    api: str
    version: str
    started_at_ns: int
    leaving: bool = False
    protocol: int = 1
    least: int = 1

    def works_with(self, other: "Node") -> bool:
        """Whether both understand each other."""
        return self.protocol >= other.least and other.protocol >= self.least


class Owner(msgspec.Struct, frozen=True):
    """Who owns a partition; `epoch` is that of the journal, 0 while it is being taken over."""

    node_id: str
    epoch: int = 0


class Held(msgspec.Struct, frozen=True):
    """An owner and the lease that its ownership lives by."""

    owner: Owner
    lease: int


class View(msgspec.Struct, frozen=True):
    """One reading of etcd."""

    nodes: Mapping[str, Node] = {}
    owners: Mapping[int, Held] = {}
    drained: frozenset[str] = frozenset()
    joined: Mapping[str, int] = {}
    """The revisions of etcd at which the nodes joined."""

    def against(self, node: Node) -> Node | None:
        """A node that does not work with this one, and was there before it."""
        joined = self.joined.get(node.node_id)
        for name, other in self.nodes.items():
            if (joined is None or self.joined[name] < joined) and not node.works_with(other):
                return other
        return None

    @property
    def leader(self) -> str | None:
        """The node that alone does what must be done once."""
        held = self.owners.get(LEADING)
        return None if held is None else held.owner.node_id

    def candidates(self) -> list[str]:
        """The nodes that ought to own partitions. If all are drained or leaving, those that are merely drained."""
        staying = [name for name, node in self.nodes.items() if not node.leaving]
        return sorted(name for name in staying if name not in self.drained) or sorted(staying)

    def wanted(self, partitions: int) -> dict[int, str]:
        """Who ought to own which partition."""
        return assignment(partitions, self.candidates())

    def api_of(self, partition: int) -> str | None:
        """The URL of the owner's API; None if nobody owns the partition now."""
        held = self.owners.get(partition)
        node = None if held is None else self.nodes.get(held.owner.node_id)
        return None if node is None else node.api


def read(entries: Mapping[str, Entry], prefix: str) -> View:
    """The view in what is below a prefix; what cannot be read, of a newer version perhaps, is passed over."""
    nodes: dict[str, Node] = {}
    owners: dict[int, Held] = {}
    drained, joined = set(), dict[str, int]()
    for key, entry in entries.items():
        kind, _, name = key.removeprefix(f"{prefix}/").partition("/")
        try:
            if kind == "nodes":
                nodes[name] = msgspec.json.decode(entry.value, type=Node)
                joined[name] = entry.created
            elif kind == "owners":
                owners[int(name)] = Held(msgspec.json.decode(entry.value, type=Owner), entry.lease)
            elif kind == "drained":
                drained.add(name)
        except (msgspec.DecodeError, ValueError):
            continue
    return View(nodes, owners, frozenset(drained), joined)
