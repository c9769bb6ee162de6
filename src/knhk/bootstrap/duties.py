"""The background duties of a server, in the order in which they start; they stop in the opposite one."""

from knhk.bootstrap import observability
from knhk.bootstrap.clustered import has_own_journal, shares_journal
from knhk.bootstrap.node import Node
from knhk.bootstrap.protection import NodeProtection
from knhk.bootstrap.recovery import NodeRecovery
from knhk.monitoring.monitor import Monitor
from knhk.ports.duty import Duty


def duties_of(
    node: Node, recovery: NodeRecovery, protection: NodeProtection, monitor: Monitor, *, shares: bool = False
) -> list[Duty]:
    """Every room that works by itself beside the runs adds its duties here.

    Those that follow the journal of a data directory are not for a node that `shares` a database with others.
    """
    if shares_journal(node.config):
        return [*observability.duties(node), monitor]
    if has_own_journal(node.config) or (shares and node.config.persistence.url):
        return list(observability.duties(node))
    return [*observability.duties(node), *recovery.duties, *protection.duties, monitor]
