"""The background duties of a server, in the order in which they start; they stop in the opposite one."""

from knhk.bootstrap import observability
from knhk.bootstrap.node import Node
from knhk.bootstrap.protection import NodeProtection
from knhk.ports.duty import Duty
from knhk.recovery.snapshot_duty import SnapshotDuty


def duties_of(node: Node, snapshots: SnapshotDuty, protection: NodeProtection) -> list[Duty]:
    """Every room that works by itself beside the runs adds its duties here."""
    found = observability.duties(node)
    if not node.config.persistence.url:  # A database has backups of its own; copies of it are made on request alone.
        found.append(snapshots)
    return [*found, *protection.duties]
