"""Which node ought to own which partition: rendezvous hashing, so that a node that comes or goes moves few of them.

Every node computes the same from the same list of nodes; there is nobody to ask. Source: D. Thaler, C. Ravishankar,
"Using name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking 6(1), 1998.
"""

from collections.abc import Collection
from hashlib import sha256


def weight(node: str, partition: int) -> bytes:
    """How much a node is the right one for a partition; the greatest weight wins."""
    return sha256(f"{partition}/{node}".encode()).digest()


def owner_of(partition: int, nodes: Collection[str]) -> str | None:
    """The node that ought to own a partition; None if there is no node."""
    return max(nodes, key=lambda node: weight(node, partition), default=None)


def assignment(partitions: int, nodes: Collection[str]) -> dict[int, str]:
    """The owner of each partition; empty if there is no node."""
    return {number: node for number in range(partitions) if (node := owner_of(number, nodes)) is not None}


def partition_of_key(key: bytes, partitions: int) -> int:
    """The partition that decides about an idempotency key: one owner sees all requests that carry it."""
    return int.from_bytes(sha256(key).digest()[:8]) % partitions
