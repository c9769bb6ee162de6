"""Snapshots of a node, from its configuration."""

from knhk.bootstrap.node import PARTITION, Node
from knhk.recovery.snapshot_duty import SnapshotDuty
from knhk.recovery.snapshots import Snapshots


def snapshots_of(node: Node) -> SnapshotDuty:
    """The duty that takes and prunes a server's snapshots."""
    recovery = node.config.recovery
    snapshots = Snapshots(
        recovery.checkpoint_path, node.store, node.store, node.signer, node.clock, node.config.platform.node_id
    )
    return SnapshotDuty(
        snapshots,
        node.store,
        node.clock,
        partition=PARTITION,
        interval_ns=recovery.snapshot_interval_ns,
        keep=recovery.max_snapshots,
    )
