"""Which process owns which partition, and which partition an idempotency key belongs to."""

from hashlib import sha256


def process_of(partition: int, processes: int) -> int:
    """The process that owns a partition: process `i` always has partition `i`, the rest is dealt out in turn."""
    return partition % processes


def assignment(partitions: int, processes: int) -> dict[int, int]:
    """The process of each partition; every partition has one, however few processes there are."""
    return {partition: process_of(partition, processes) for partition in range(partitions)}


def homes(key: bytes, partitions: int) -> list[int]:
    """The partition of an idempotency key, then those that it had when there were fewer partitions.

    The partition of the greatest weight among the first n is where a key belonged while there were n (rendezvous
    hashing, see cluster.assignment), so that a key never used before and one used long ago are told apart by asking
    few partitions: the n-th harmonic number of them on average. Partition 0 is always one of them.
    """
    found: list[int] = []
    greatest = b""
    for partition in range(partitions):
        weight = sha256(b"%d/" % partition + key).digest()
        if weight > greatest:
            found.append(partition)
            greatest = weight
    return found[::-1]
