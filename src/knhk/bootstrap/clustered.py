"""Whether a node is one of several. Light: what such a node needs is only imported if it is."""

import os
from typing import Final

from knhk.config import Config
from knhk.domain.errors import InvalidConfiguration

_EVERYWHERE: Final = ("0.0.0.0", "::", "")


def is_clustered(config: Config) -> bool:
    """Whether a node of this configuration is one of several."""
    return config.cluster.mode and bool(config.cluster.etcd)


def shares_journal(config: Config) -> bool:
    """Whether it is one of several that have their journal in one database."""
    return is_clustered(config) and bool(config.persistence.url)


def has_own_journal(config: Config) -> bool:
    """Whether it is one of several that have a RocksDB each."""
    return is_clustered(config) and not config.persistence.url


def complaint(config: Config) -> str:
    """What an operator who asked for a cluster must know; empty if there is nothing.

    Raises InvalidConfiguration if the cluster cannot do what it is asked for.
    """
    if shares_journal(config):
        unused = " cluster.takeover has no effect: all nodes share the journal." if config.cluster.takeover else ""
        return (
            "this node is one of a cluster: snapshots, drills and retention do not run on it; docs/cluster.md says "
            f"what to use instead.{unused}"
        )
    if has_own_journal(config):
        if config.cluster.takeover and not config.recovery.backup_to:
            raise InvalidConfiguration(
                "cluster.takeover needs recovery.backup_to: a lost node's journal is restored from what was shipped",
                hint="Name a place that all nodes reach, such as s3://bucket/prefix or a directory on NFS.",
            )
        if config.recovery.ship_before_acknowledging and not config.recovery.backup_to:
            raise InvalidConfiguration("recovery.ship_before_acknowledging needs recovery.backup_to")
        return (
            "this node is one of a cluster with a journal of its own: service levels, alerts and drills do not run on "
            "it, and there are no blobs; see docs/cluster.md"
        )
    if not config.cluster.mode:
        if config.recovery.ship_before_acknowledging:
            return "recovery.ship_before_acknowledging has no effect on a node that works alone"
        return ""
    return (
        "cluster.mode (set to true) has no effect: it needs cluster.etcd, so this node works alone and must have a "
        "data directory of its own"
    )


def own_url(config: Config, port: int) -> str:
    """Where other nodes find this one's API, unless `cluster.advertise` says so."""
    host = config.api.host
    return f"http://{os.uname().nodename if host in _EVERYWHERE else host}:{port}"
