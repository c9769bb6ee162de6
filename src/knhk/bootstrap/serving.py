"""The server: the node with its duties, the API and the operations, from the start to the end of the process."""

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from knhk import __version__
from knhk.bootstrap.clustered import complaint, is_clustered, own_url
from knhk.bootstrap.diagnostics import NodeDiagnostics
from knhk.bootstrap.duties import duties_of
from knhk.bootstrap.monitoring import monitor_of
from knhk.bootstrap.node import Node, run_async
from knhk.bootstrap.operations import NodeOperations
from knhk.bootstrap.protection import NodeProtection
from knhk.bootstrap.recovery import NodeRecovery
from knhk.bootstrap.scaling import NodeScaling
from knhk.config import Config, Loaded, absent_sections
from knhk.engine.executor import THREAD_NAME
from knhk.observability.logs import configure, flush, get
from knhk.persistence.postgres_options import public_name
from knhk.platform.serving import Serving, listen

if TYPE_CHECKING:
    from knhk.bootstrap.cluster import Cluster

_SWITCH_INTERVAL_S: Final = 0.0005
_YOUNG_OBJECTS: Final = 50_000


def serve(loaded: Loaded) -> int:
    """Serve the API and the operations until a signal or /shutdown; the process's exit code."""
    configure(loaded.config.platform.log_level)
    code = run_async(_serve(loaded))
    if any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()):
        # An action that blocks for ever in a thread would keep the interpreter from ending; all else is closed.
        flush()
        os._exit(code)
    return code


async def _serve(loaded: Loaded) -> int:
    config, log = loaded.config, get("knhk.serve")
    for sentence in (*loaded.warnings, *absent_sections(loaded), *filter(None, [complaint(config)])):
        log.warning(sentence)
    metrics = config.observability
    api_socket = listen(config.api.host, config.api.port, "api.port")
    operations_socket = listen(metrics.metrics_host, metrics.metrics_port, "observability.metrics_port")
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    node = Node(config)
    recovery = NodeRecovery(node, loaded.path)
    protection = NodeProtection(node)
    monitor = monitor_of(node)
    duties = duties_of(node, recovery, protection, monitor)
    diagnostics = NodeDiagnostics(loaded, node)
    cluster = _cluster_of(node, api_socket)
    scaling = NodeScaling(node, cluster)
    duties.append(scaling.autoscaler)
    operations = NodeOperations(node, duties, recovery, stopping, diagnostics, monitor, cluster)
    operations_server = diagnostics.server(operations, monitor, operations_socket)
    api_server = _api_of(node, cluster, scaling, protection, api_socket)
    try:
        await diagnostics.start(_address(api_socket), _address(operations_socket))
        await operations_server.start()
        await (node.start() if cluster is None else cluster.start())
        await node.uptime.start()
        for duty in duties:
            await duty.start()
        await api_server.start()
        _tune_for_throughput()
        operations.started = True
        log.info(
            "ready",
            api=_address(api_socket),
            operations=_address(operations_socket),
            data=public_name(config.persistence.url) or str(config.persistence.path),
            version=__version__,
        )
        return await _until_stopped(node, cluster, config, stopping)
    finally:
        node.workers.close()
        await api_server.stop()
        for duty in reversed(duties):
            await duty.stop()
        await node.uptime.stop()
        if cluster is not None:
            await cluster.stop()
        await node.stop()
        await operations_server.stop()
        log.info("stopped")
        await diagnostics.stop()


def _api_of(
    node: Node,
    cluster: "Cluster | None",
    scaling: NodeScaling,
    protection: NodeProtection,
    api_socket: socket.socket,
) -> Serving:
    """The API's server. In a cluster each request finds its way to the node that owns what it is about."""
    from knhk.api.actions import action_handlers
    from knhk.api.app import create_app
    from knhk.api.blobs import blob_handlers
    from knhk.api.cluster import cluster_handlers
    from knhk.api.fast_path import protocol_for
    from knhk.api.protection import protection_handlers
    from knhk.api.routed_control import routed
    from knhk.api.routing import RoutedSubmit, Routing
    from knhk.api.scaling import scaling_handlers
    from knhk.api.submit import SubmitRoute
    from knhk.api.workers import Face, worker_handlers

    workers, most_bytes = node.config.workers, node.config.api.max_body_bytes
    control, route = node.engine.control, SubmitRoute(node.engine.control, most_bytes)
    remote: Face = node.workers
    if cluster is not None:
        control, route = routed(cluster.router), RoutedSubmit(cluster.router, most_bytes)
        remote = cluster.workers
        protection.erasure.runs, protection.erasure.projected = control, cluster.projected
    further = [
        *action_handlers(node.registry),
        *blob_handlers(node.blobs),
        *worker_handlers(remote, max_wait_ns=workers.max_wait_ns, max_batch=workers.max_batch),
        *protection_handlers(control, protection.services),
        *scaling_handlers(scaling),
        *(cluster_handlers(cluster) if cluster is not None else ()),
    ]
    application: Any = create_app(control, route, version=__version__, further=further)
    if cluster is not None:
        application = Routing(application, cluster.router, most_bytes)
    return Serving(application, api_socket, protocol_for(route))


def _cluster_of(node: Node, api_socket: socket.socket) -> "Cluster | None":
    if not is_clustered(node.config):
        return None
    from knhk.bootstrap.cluster import Cluster

    return Cluster(node, own_url(node.config, api_socket.getsockname()[1]))


async def _until_stopped(node: Node, cluster: "Cluster | None", config: Config, stopping: asyncio.Event) -> int:
    grace_s = config.platform.shutdown_grace_ns / 1e9
    if cluster is not None:
        await stopping.wait()
        get("knhk.serve").info("leaving", grace_s=grace_s)
        await cluster.leave(grace_s)
        return 0
    halted = node.engine.halted
    assert halted is not None
    halted.add_done_callback(lambda _halted: stopping.set())
    await stopping.wait()
    log = get("knhk.serve")
    if halted.done():
        error = halted.result()
        log.error("halted", code=error.code, reason=error.message, hint=error.advice)
        return 1
    log.info("draining", grace_s=grace_s)
    if not await node.engine.drain(grace_s):
        log.warning("work is left; it goes on from its receipts at the next start")
    return 0


def _tune_for_throughput() -> None:
    """What was made during the start stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 50)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"
