"""The composition root: the only file that names concrete classes. Builds, starts and stops everything."""

import asyncio
import gc
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import uvloop

from knhk import __version__
from knhk.actions import http
from knhk.actions.registry import Registry
from knhk.config import Config, Loaded, absent_sections
from knhk.domain.times import rfc3339
from knhk.engine.executor import THREAD_NAME
from knhk.engine.service import Engine, Settings
from knhk.observability.logs import configure, flush, get
from knhk.observability.metrics import Metrics
from knhk.observability.readings import OK, Readings
from knhk.observability.uptime import Uptime
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.platform.clock import SystemClock
from knhk.platform.ids import SnowflakeIds
from knhk.platform.serving import Serving, listen
from knhk.security.signing import Ed25519Signer

PARTITION: Final = 0
_SWITCH_INTERVAL_S: Final = 0.0005
_YOUNG_OBJECTS: Final = 50_000
_DRIFT_S: Final = 5.0
_MILLISECOND_NS: Final = 1_000_000


class Node:
    """One process's engine with its store, ready to be started."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clock = SystemClock()
        http.SHARED.configure(config.actions)
        self.registry = Registry.load(config.actions.modules)
        self.store = open_store(config)
        self.signer = Ed25519Signer.load_or_create(config.persistence.key_path, self.clock.now_ns())
        self.metrics = Metrics()
        self.engine = Engine(
            settings(config),
            self.registry,
            append=self.store,
            journal=self.store,
            projections=self.store,
            storage=self.store,
            signer=self.signer,
            clock=self.clock,
            ids=SnowflakeIds(self.clock),
            rng=random.Random(),
            folds=[self.metrics],
        )

    async def start(self) -> None:
        """Take over the journal and go on with what is in it."""
        head = await self.store.head(PARTITION)
        if head is not None:
            # The next millisecond: ids are made of it, and those of this one are given out.
            self.clock.not_before((head.block().at_ns // _MILLISECOND_NS + 1) * _MILLISECOND_NS)
        await self.engine.start()

    async def stop(self) -> None:
        """Stop at once and close the store."""
        await self.engine.stop()
        await self.store.close()


def settings(config: Config) -> Settings:
    """The engine's limits from the configuration."""
    platform, persistence = config.platform, config.persistence
    return Settings(
        node_id=platform.node_id,
        max_active=platform.max_concurrent_workflows,
        max_queued=platform.max_queued_workflows,
        max_concurrent_steps=platform.max_concurrent_steps,
        threads=config.actions.threads,
        default_timeout_ns=platform.workflow_timeout_ns,
        tick_ns=platform.tick_ns,
        max_descriptor_bytes=config.api.max_body_bytes,
        max_steps=config.api.max_steps,
        max_payload_bytes=persistence.max_payload_bytes,
        min_free_bytes=persistence.min_free_bytes,
        partition=PARTITION,
    )


def open_store(config: Config, *, read_only: bool = False) -> RocksDbStore:
    """The embedded store of this configuration.

    Raises:
        DataDirectoryInUse: another process has it open.
        JournalCorrupt: what is there is not what was written.
    """
    persistence = config.persistence
    tuning = persistence.rocksdb
    options = StoreOptions(
        write_buffer_size_bytes=tuning.write_buffer_size_bytes,
        max_write_buffer_number=tuning.max_write_buffer_number,
        target_file_size_base_bytes=tuning.target_file_size_base_bytes,
        max_background_jobs=tuning.max_background_jobs,
        compression=tuning.compression if persistence.compression else "none",
        block_cache_size_bytes=tuning.block_cache_size_bytes,
        bloom_filter_bits=tuning.bloom_filter_bits,
    )
    return RocksDbStore.open(persistence.path, options, persistence.compression, read_only=read_only)


class NodeOperations:
    """Implements ops.operations.Operations for a node."""

    def __init__(self, node: Node, stopping: asyncio.Event) -> None:
        self._node, self._stopping = node, stopping
        self.uptime = Uptime(node.store, node.clock)
        self.started = False
        node.metrics.connect(self._readings())

    @property
    def version(self) -> str:
        return __version__

    @property
    def uptime_s(self) -> float:
        return self.uptime.seconds

    @property
    def halted(self) -> str | None:
        halted = self._node.engine.halted
        return halted.result().message if halted is not None and halted.done() else None

    async def health(self) -> Mapping[str, str]:
        return self._checks()

    async def ready(self) -> tuple[bool, str]:
        if not self.started:
            return False, "starting"
        if self._stopping.is_set() or self._node.engine.admission.closed:
            return False, "shutting down"
        trouble = self._node.engine.trouble
        return (True, "") if trouble is None else (False, trouble.message)

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        return self._node.metrics.exposition(accept)

    async def checkpoint(self) -> tuple[Path, int]:
        name = rfc3339(self._node.clock.now_ns()).replace(":", "").replace(".", "-")
        target = self._node.config.recovery.checkpoint_path / name
        return target, await self._node.store.checkpoint(target)

    async def shutdown(self) -> None:
        self._stopping.set()

    def _checks(self) -> dict[str, str]:
        drift_s = self._node.clock.drift_s
        jumped = f"the machine's clock has moved by {drift_s:+.1f} s since the start"
        return {**self._node.engine.health(), "observability": OK if abs(drift_s) < _DRIFT_S else jumped}

    def _readings(self) -> Readings:
        engine, store = self._node.engine, self._node.store
        return Readings(
            version=__version__,
            active=lambda: len(engine.scheduler.active),
            pending=lambda: len(engine.scheduler.pending),
            commits=lambda: engine.committer.statistics,
            rejections=lambda: engine.admission.rejections,
            store=store.statistics,
            projection_lag=lambda: max(0, engine.committer.height - engine.projector.cursor),
            uptime_percentage=self.uptime.percentage,
            steps_running=lambda: engine.executor.running,
            steps_waiting=lambda: engine.executor.waiting,
            free_bytes=store.free_bytes,
            checks=self._checks,
        )


@asynccontextmanager
async def embedded(loaded: Loaded) -> AsyncIterator[Engine]:
    """An engine without servers, for one process's own use; stopped at the end of the block.

    Raises what opening the store raises.
    """
    node = Node(loaded.config)
    try:
        await node.start()
        yield node.engine
    finally:
        await node.stop()


def run_async(main: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine on a uvloop to its end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


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
    from knhk.api.app import create_app
    from knhk.api.fast_path import protocol_for
    from knhk.api.submit import SubmitRoute
    from knhk.ops.app import create_app as create_operations

    config, log = loaded.config, get("knhk.serve")
    for sentence in (*loaded.warnings, *absent_sections(loaded)):
        log.warning(sentence)
    metrics = config.observability
    api_socket = listen(config.api.host, config.api.port, "api.port")
    operations_socket = listen(metrics.metrics_host, metrics.metrics_port, "observability.metrics_port")
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    node = Node(config)
    operations = NodeOperations(node, stopping)
    operations_server = Serving(create_operations(operations), operations_socket)
    route = SubmitRoute(node.engine.control, config.api.max_body_bytes)
    application = create_app(node.engine.control, route, version=__version__)
    api_server = Serving(application, api_socket, protocol_for(route))
    try:
        await operations_server.start()
        await node.start()
        await operations.uptime.start()
        await api_server.start()
        _tune_for_throughput()
        operations.started = True
        log.info(
            "ready",
            api=_address(api_socket),
            operations=_address(operations_socket),
            data=str(config.persistence.path),
            version=__version__,
        )
        return await _until_stopped(node, config, stopping)
    finally:
        await api_server.stop()
        await operations.uptime.stop()
        await node.stop()
        await operations_server.stop()
        log.info("stopped")


async def _until_stopped(node: Node, config: Config, stopping: asyncio.Event) -> int:
    halted = node.engine.halted
    assert halted is not None
    halted.add_done_callback(lambda _halted: stopping.set())
    await stopping.wait()
    log = get("knhk.serve")
    if halted.done():
        error = halted.result()
        log.error("halted", code=error.code, reason=error.message, hint=error.advice)
        return 1
    grace_s = config.platform.shutdown_grace_ns / 1e9
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
