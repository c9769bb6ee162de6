"""The server: the node with its duties, the API and the operations, from the start to the end of the process."""

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from knhk import __version__
from knhk.bootstrap.clustered import complaint, has_own_journal, is_clustered, own_url
from knhk.bootstrap.diagnostics import NodeDiagnostics
from knhk.bootstrap.duties import duties_of
from knhk.bootstrap.forces import force_of, objection
from knhk.bootstrap.monitoring import monitor_of
from knhk.bootstrap.node import PARTITION, Node, run_async
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
    from knhk.bootstrap.local import Local, Seat

_SWITCH_INTERVAL_S: Final = 0.0005
_YOUNG_OBJECTS: Final = 50_000


def serve(loaded: Loaded) -> int:
    """Serve the API and the operations until a signal or /shutdown; the process's exit code."""
    configure(loaded.config.platform.log_level)
    return ended(run_async(_serve(loaded)))


def ended(code: int) -> int:
    """The exit code of a process whose loop has ended."""
    if any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()):
        # An action that blocks for ever in a thread would keep the interpreter from ending; all else is closed.
        flush()
        os._exit(code)
    return code


async def _serve(loaded: Loaded) -> int:
    config, log = loaded.config, get("knhk.serve")
    for sentence in (*loaded.warnings, *absent_sections(loaded), *filter(None, [complaint(config), objection(config)])):
        log.warning(sentence)
    force = await force_of(config)
    if force is not None:
        from knhk.bootstrap.supervising import supervise

        return await supervise(loaded, force)
    metrics = config.observability
    sockets = Sockets(
        listen(config.api.host, config.api.port, "api.port"),
        listen(metrics.metrics_host, metrics.metrics_port, "observability.metrics_port"),
    )
    return await serve_on(loaded, sockets)


class Sockets(NamedTuple):
    """What a process listens on; on `inner`, if there is one, others of the same server ask it."""

    api: socket.socket
    operations: socket.socket
    inner: socket.socket | None = None


async def serve_on(loaded: Loaded, sockets: Sockets, seat: "Seat | None" = None) -> int:
    """Serve until a signal or /shutdown; the exit code. `seat` is the process's place among several of a server."""
    config, log = loaded.config, get("knhk.serve")
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    node = _node_of(config, seat)
    recovery = NodeRecovery(node, loaded.path)
    shares = has_own_journal(config) or (seat is not None and bool(config.persistence.url))
    protection = NodeProtection(node, shares=shares)
    monitor = monitor_of(node)
    company = _company_of(node, config, sockets.api, stopping, seat)
    duties = duties_of(node, recovery, protection, monitor, shares=company is not None)
    diagnostics = NodeDiagnostics(loaded, node)
    scaling = _scaling_of(node, company)
    if (seat is None or seat.number == PARTITION) and not has_own_journal(config):
        duties.append(scaling.autoscaler)
    operations = NodeOperations(node, duties, recovery, stopping, diagnostics, monitor, company)
    operations_server = diagnostics.server(operations, monitor, sockets.operations)
    api_servers = _api_of(node, company, scaling, protection, sockets)
    api, inner = _address(sockets.api), _address(sockets.inner or sockets.api)
    try:
        await diagnostics.start(api, _address(sockets.operations))
        await operations_server.start()
        await (node.start() if company is None else company.start())
        await node.uptime.start()
        for duty in duties:
            await duty.start()
        for server in api_servers:
            await server.start()
        tune_for_throughput()
        operations.started = True
        log.info(
            "ready",
            api=api,
            operations=_address(sockets.operations),
            data=public_name(config.persistence.url) or str(config.persistence.path),
            version=__version__,
        )
        if company is not None:
            company.ready(inner, _address(sockets.operations))
        return await _until_stopped(node, company, stopping, api_servers)
    finally:
        node.let_go()
        for server in api_servers:
            await server.stop()
        for duty in reversed(duties):
            await duty.stop()
        await node.uptime.stop()
        if company is not None:
            await company.stop()
        await node.stop()
        await operations_server.stop()
        log.info("stopped")
        await diagnostics.stop()


def _api_of(
    node: Node,
    company: "Cluster | Local | None",
    scaling: NodeScaling,
    protection: NodeProtection,
    sockets: Sockets,
) -> list[Serving]:
    """The API's servers. Where there are several processes each request finds its way to the one that it is for."""
    from knhk.api.actions import action_handlers
    from knhk.api.app import create_app
    from knhk.api.blobs import blob_handlers
    from knhk.api.fast_path import protocol_for
    from knhk.api.protection import protection_handlers
    from knhk.api.routed_control import routed
    from knhk.api.routing import RoutedSubmit, Routing
    from knhk.api.scaling import scaling_handlers
    from knhk.api.submit import DirectSubmit, SubmitRoute
    from knhk.api.workers import Face, worker_handlers

    workers, most_bytes = node.config.workers, node.config.api.max_body_bytes
    control = node.engine.control
    route: SubmitRoute = DirectSubmit(control, most_bytes)
    remote: Face = node.workers
    if company is not None:
        control, route = routed(company.router), RoutedSubmit(company.router, most_bytes)
        remote = company.workers
        protection.erasure.runs, protection.erasure.projected = control, company.projected
    further = [
        *action_handlers(node.registry),
        *blob_handlers(node.blobs),
        *worker_handlers(remote, max_wait_ns=workers.max_wait_ns, max_batch=workers.max_batch),
        *protection_handlers(control, protection.services),
        *scaling_handlers(scaling),
        *(company.handlers() if company is not None else ()),
    ]
    application: Any = create_app(control, route, version=__version__, further=further)
    if company is not None:
        application = Routing(application, company.router, most_bytes)
    given = [one for one in (sockets.inner, sockets.api) if one is not None]
    return [Serving(application, one, protocol_for(route)) for one in given]


def _scaling_of(node: Node, company: "Cluster | Local | None") -> NodeScaling:
    cluster, processes = (None, None) if company is None else company.for_scaling()
    return NodeScaling(node, cluster, processes)


def _node_of(config: Config, seat: "Seat | None") -> Node:
    if seat is not None:
        return Node(config, seat.number)
    if has_own_journal(config):
        from knhk.bootstrap.own_journals import node_config

        config = node_config(config)
    return Node(config)


def _company_of(
    node: Node, config: Config, api_socket: socket.socket, stopping: asyncio.Event, seat: "Seat | None"
) -> "Cluster | Local | None":
    if seat is not None:
        from knhk.bootstrap.local import Local

        return Local(node, seat, stopping)
    if not is_clustered(config):
        return None
    url = own_url(config, api_socket.getsockname()[1])
    if has_own_journal(config):
        from knhk.bootstrap.own_journals import OwnJournals

        return OwnJournals(node, url, config)
    from knhk.bootstrap.cluster import Cluster

    return Cluster(node, url)


async def _until_stopped(
    node: Node, company: "Cluster | Local | None", stopping: asyncio.Event, servers: Sequence[Serving]
) -> int:
    log, loop, grace_s = get("knhk.serve"), asyncio.get_running_loop(), node.config.platform.shutdown_grace_ns / 1e9
    halted = node.engine.halted
    if company is None:
        assert halted is not None
        halted.add_done_callback(lambda _halted: stopping.set())
    await stopping.wait()
    if company is None and halted is not None and halted.done():
        error = halted.result()
        log.error("halted", code=error.code, reason=error.message, hint=error.advice)
        return 1
    over = loop.time() + grace_s
    for server in servers:
        server.drain()
    if company is not None:
        log.info("leaving", grace_s=grace_s)
        await company.leave(grace_s)
    else:
        log.info("draining", grace_s=grace_s)
        if not await node.engine.drain(grace_s):
            log.warning("work is left; it goes on from its receipts at the next start")
    node.let_go()
    await asyncio.gather(*(server.finish(over - loop.time()) for server in servers))
    return 0 if company is None else company.exit_code


def tune_for_throughput() -> None:
    """What was made during the start stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 50)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"
