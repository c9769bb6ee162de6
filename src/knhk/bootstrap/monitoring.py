"""The service level and the alert channels of a node, from its configuration."""

import os
from collections import Counter

from knhk.bootstrap.clustered import shares_journal
from knhk.bootstrap.node import PARTITION, Node
from knhk.bootstrap.stores import projections_of
from knhk.config.monitoring_section import AlertChannel, Monitoring
from knhk.monitoring import channels
from knhk.monitoring.delivery import Channel, EmailChannel, HttpChannel, HttpClient, MailServer
from knhk.monitoring.incidents import Audience, Ledger
from knhk.monitoring.monitor import Monitor
from knhk.monitoring.service_level import ServiceLevel, Targets
from knhk.monitoring.shared_level import SharedLevel

_PERCENT = 100.0


def monitor_of(node: Node) -> Monitor:
    """The monitor, whose fold sees all that the node commits. Call it before the node starts."""
    settings, client = node.config.monitoring, HttpClient()
    level = ServiceLevel(node.clock, _targets(settings), node.uptime)
    monitor = Monitor(
        node.clock,
        level,
        Ledger(_source_of(node), cooldown_ns=settings.cooldown_ns, resolve_after_ns=settings.resolve_after_ns),
        _channels(node, client),
        client,
        node=_source_of(node),
        interval_s=settings.check_interval_ns / 1e9,
        projections=projections_of(node.store, PARTITION),
        journal=node.store,
        partition=node.partition,
        progress=node.engine.projector,
    )
    if shares_journal(node.config):
        _share(node, monitor)
    else:
        node.folds.append(level)
    node.metrics.show("monitoring", monitor.families)
    return monitor


def _share(node: Node, monitor: Monitor) -> None:
    """One service level for all nodes of a cluster. The leader alone tells of alerts, fenced like all that it does."""
    store = node.store
    monitor.shared = shared = SharedLevel(
        node.clock,
        monitor.level,
        store,
        store,
        lambda partition: projections_of(store, partition),
        lambda: node.engines,
        node.config.cluster.partitions,
    )
    monitor.silencing = store
    monitor.leads = lambda: PARTITION in node.engines and node.engines[PARTITION].started
    node.folds.append(shared)


def _source_of(node: Node) -> str:
    """Who an alert is about: the node, or the cluster, whose leaders come and go."""
    return node.config.cluster.name if shares_journal(node.config) else node.config.platform.node_id


def _targets(settings: Monitoring) -> Targets:
    promised = settings.sla_target / _PERCENT
    return Targets(
        availability=promised,
        success=promised,
        latency=settings.latency_percent / _PERCENT,
        latency_s=settings.latency_target_ns / 1e9,
        least_failures=settings.min_failures,
        least_down_s=settings.min_downtime_ns / 1e9,
    )


def _channels(node: Node, client: HttpClient) -> list[Channel]:
    """The channels by the names under which operators see them."""
    settings, seen = node.config.monitoring, Counter[str]()
    made: list[Channel] = []
    for given in settings.alert_channels:
        name = given.name or given.type
        seen[name] += 1
        audience = Audience(name if seen[name] == 1 else f"{name}-{seen[name]}", given.severity, given.after_ns)
        made.append(_channel(node, given, audience, client))
    return made


def _channel(node: Node, given: AlertChannel, audience: Audience, client: HttpClient) -> Channel:
    name = _source_of(node)
    if given.type == "email":
        smtp = node.config.monitoring.smtp
        server = MailServer(smtp.host, smtp.port, smtp.security, smtp.username, smtp.password.get_secret_value())
        sender = smtp.sender or f"knhk@{os.uname().nodename}"
        return EmailChannel(audience, server, sender, given.addresses, name, node.clock)
    if given.type == "pagerduty":
        key = given.service_key.get_secret_value() if given.service_key is not None else ""
        url = given.url or channels.PAGERDUTY_URL
        return HttpChannel(
            audience,
            given.type,
            lambda fires, over: [
                *(channels.pagerduty(url, key, one, over=False) for one in fires),
                *(channels.pagerduty(url, key, one, over=True) for one in over),
            ],
            client.get,
        )
    url = given.webhook_url.get_secret_value() if given.webhook_url is not None else ""
    if given.type == "slack":
        return HttpChannel(
            audience, given.type, lambda fires, over: [channels.slack(url, name, fires, over)], client.get
        )
    secret = given.secret.get_secret_value() if given.secret is not None else ""
    return HttpChannel(
        audience, given.type, lambda fires, over: [channels.webhook(url, secret, name, fires, over)], client.get
    )
