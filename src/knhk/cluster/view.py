"""What is in etcd, as data: nodes, owners, homes, and marks of nodes that are being drained.

<prefix>/nodes/<node id>      Node as JSON, bound to the node's lease
<prefix>/owners/<partition>   Owner as JSON, bound to the owner's lease
<prefix>/homes/<partition>    Home as JSON, where each node has its own journal; it stays
<prefix>/drained/<node id>    a mark, until it is taken back
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from knhk.cluster.assignment import assignment, owner_of
from knhk.cluster.etcd import Entry

LEADING: Final = 0
"""The owner of this partition is the leader: what must be done once is fenced like every other append."""


PROTOCOL: Final = 1
"""What nodes of this version say to each other, and write for each other. It grows with what others must understand."""
LEAST: Final = 1
"""The oldest protocol that this version still works with."""


class Node(msgspec.Struct, frozen=True):
    """A node as it describes itself. `leaving`: it is shutting down and gives its partitions away.

    `protocol` is what it speaks, `least` the oldest that it works with. `own_journal`: it does not share a database.
    """

    node_id: str
    api: str
    version: str
    started_at_ns: int
    leaving: bool = False
    protocol: int = 1
    least: int = 1
    own_journal: bool = False

    def works_with(self, other: "Node") -> bool:
        """Whether both understand each other, and keep their journals in the same way."""
        understood = self.protocol >= other.least and other.protocol >= self.least
        return understood and self.own_journal == other.own_journal


class Owner(msgspec.Struct, frozen=True):
    """Who owns a partition; `epoch` is that of the journal, 0 while it is being taken over."""

    node_id: str
    epoch: int = 0


class Home(msgspec.Struct, frozen=True):
    """Where the journal of a partition is: `origin` made it, `holder` has it now, since the `epoch`; 0: not begun.

    `through` is the height of the last block when it was handed over whole, -1 if it was not.
    """

    origin: str
    holder: str
    epoch: int = 0
    through: int = -1


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
    homes: Mapping[int, Home] = {}

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

    def at_home(self, *, movable: bool, takeover: bool) -> dict[int, str]:
        """Who ought to own which partition, where each node has its own journal.

        `movable`: journals are shipped to a place that all nodes reach. A partition whose node is gone is then taken
        over only if `takeover` says so, and is in nobody's hands else.
        """
        candidates, found = self.candidates(), dict[int, str]()
        for number, home in self.homes.items():
            holder = self.nodes.get(home.holder)
            if not movable or (not takeover and (holder is None or holder.leaving)):
                wanted: str | None = None if holder is None else home.holder
            elif home.origin in candidates or home.holder in candidates:
                wanted = home.origin if home.origin in candidates else home.holder
            else:
                wanted = owner_of(number, candidates)
            if wanted is not None:
                found[number] = wanted
        return found

    def api_of(self, partition: int) -> str | None:
        """The URL of the owner's API; None if nobody owns the partition now."""
        held = self.owners.get(partition)
        node = None if held is None else self.nodes.get(held.owner.node_id)
        return None if node is None else node.api


def read(entries: Mapping[str, Entry], prefix: str) -> View:
    """The view in what is below a prefix; what cannot be read, of a newer version perhaps, is passed over."""
    nodes: dict[str, Node] = {}
    owners: dict[int, Held] = {}
    drained, joined, homes = set[str](), dict[str, int](), dict[int, Home]()
    for key, entry in entries.items():
        kind, _, name = key.removeprefix(f"{prefix}/").partition("/")
        try:
            if kind == "nodes":
                nodes[name] = msgspec.json.decode(entry.value, type=Node)
                joined[name] = entry.created
            elif kind == "owners":
                owners[int(name)] = Held(msgspec.json.decode(entry.value, type=Owner), entry.lease)
            elif kind == "homes":
                homes[int(name)] = msgspec.json.decode(entry.value, type=Home)
            elif kind == "drained":
                drained.add(name)
        except (msgspec.DecodeError, ValueError):
            continue
    return View(nodes, owners, frozenset(drained), joined, homes)


def free_number(taken: Iterable[int]) -> int:
    """The least number that is not taken."""
    numbers = set(taken)
    return next(number for number in range(len(numbers) + 1) if number not in numbers)
