"""Whether a node is one of several. Light: what such a node needs is only imported if it is."""

import os
from typing import Final

from knhk.config import Config

_EVERYWHERE: Final = ("0.0.0.0", "::", "")


def is_clustered(config: Config) -> bool:
    """Whether a node of this configuration is one of several."""
    return config.cluster.mode and bool(config.cluster.etcd) and bool(config.persistence.url)


def complaint(config: Config) -> str:
    """What an operator who asked for a cluster must know; empty if there is nothing."""
    if is_clustered(config):
        return (
            "this node is one of a cluster: snapshots, drills and retention do not run on it; docs/cluster.md says "
            "what to use instead"
        )
    if not config.cluster.mode:
        return ""
    return (
        "cluster.mode (set to true) has no effect: it needs cluster.etcd and persistence.url, so this node works alone "
        "and must have a data directory of its own"
    )


def own_url(config: Config, port: int) -> str:
    """Where other nodes find this one's API, unless `cluster.advertise` says so."""
    host = config.api.host
    return f"http://{os.uname().nodename if host in _EVERYWHERE else host}:{port}"
