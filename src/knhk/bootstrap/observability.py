"""What measures a node and tells others about it."""

import os

from knhk.bootstrap.node import Node
from knhk.domain.errors import InvalidConfiguration
from knhk.observability.interpreter import Interpreter
from knhk.ports.duty import Duty


def duties(node: Node) -> list[Duty]:
    """The duties of the room observability; what they measure is shown in the node's metrics."""
    interpreter = Interpreter(node.clock)
    node.metrics.show("interpreter", interpreter.families)
    return [*_telemetry(node), interpreter]


def _telemetry(node: Node) -> list[Duty]:
    """The exporter, if there is a collector. Its libraries are loaded only then."""
    settings = node.config.observability
    if not settings.endpoint:
        return []
    from knhk.observability import otlp
    from knhk.observability.exporter import Exporter

    try:
        endpoint = otlp.endpoint_of(settings.endpoint, settings.protocol)
    except ValueError as error:
        raise InvalidConfiguration(f"observability.endpoint: {error}") from None
    headers = otlp.headers_of(settings.headers.get_secret_value())
    exporter = Exporter(
        node.clock,
        otlp.resource(node.config.platform.node_id, os.uname().nodename),
        lambda: otlp.sender_to(endpoint, headers),
        interval_s=settings.export_interval_ns / 1e9,
        sampling_rate=settings.sampling_rate,
        families=node.metrics.families,
        where=endpoint.url,
    )
    node.folds.append(exporter.spans)
    node.metrics.show("telemetry", exporter.families)
    return [exporter]
