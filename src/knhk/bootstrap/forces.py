"""How many processes a server has, and how many partitions. Light: what several need is only imported if there are."""

import os
from typing import NamedTuple

from knhk.bootstrap.clustered import is_clustered
from knhk.bootstrap.stores import postgres_store
from knhk.config import Config
from knhk.domain.errors import InvalidConfiguration
from knhk.persistence.partition_directories import partitions_in


class Force(NamedTuple):
    """So many processes, and the partitions that they own together."""

    processes: int
    partitions: int


async def force_of(config: Config) -> Force | None:
    """What a server of this configuration needs; None if one process with one partition is all.

    There are as many partitions as there ever were, since they hold runs, and at least one for each process.

    Raises:
        InvalidConfiguration: several processes cannot do what is configured.
        JournalCorrupt: a partition is missing.
        StorageUnavailable: the database does not answer.
    """
    if is_clustered(config):
        return None
    wanted = config.platform.processes
    processes = len(os.sched_getaffinity(0)) if wanted == "auto" else int(wanted)
    found = await _partitions_in_database(config) if config.persistence.url else partitions_in(config.persistence.path)
    if max(processes, found) == 1:
        return None
    if config.persistence.encryption:
        raise InvalidConfiguration(
            "persistence.encryption needs platform.processes: 1, and a data directory that never had more processes: "
            "a key ring belongs to one",
            hint="Set one of them otherwise. Several nodes with a data directory each can all encrypt.",
        )
    return Force(processes, max(processes, found))


def objection(config: Config) -> str:
    """What an operator who asked for several processes must know; empty if there is nothing."""
    if is_clustered(config) and config.platform.processes != "1":
        return "platform.processes has no effect in a cluster, where each node is one process: start several nodes"
    if config.platform.processes != "1" and config.persistence.url:
        return "service levels and alerts do not run where several processes share a database"
    return ""


async def _partitions_in_database(config: Config) -> int:
    store = postgres_store(config.persistence)
    try:
        await store.open()
        return max(await store.partitions(), default=0) + 1
    finally:
        await store.close()
