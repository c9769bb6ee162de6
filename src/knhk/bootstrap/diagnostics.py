"""The watchdog, the flight recorder and the /debug routes of a server."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import psutil

from knhk import __version__
from knhk.bootstrap.node import Node
from knhk.config import Loaded, redacted, secrets_of
from knhk.diagnostics import memory, resources, sampler, stacks
from knhk.diagnostics.flight_recorder import FlightRecorder
from knhk.diagnostics.progress import Moment, Progress
from knhk.diagnostics.scrubbing import Scrubber
from knhk.diagnostics.watchdog import Watchdog
from knhk.domain.times import rfc3339
from knhk.monitoring.monitor import Monitor
from knhk.observability import logs
from knhk.observability.logs import get
from knhk.ops.operations import Operations
from knhk.platform.serving import ServingThread

_NS: Final = 1e9
_NEARLY_FULL: Final = 8
_SHARE: Final = 50
"""The disk is nearly full below so many times `persistence.min_free`, or below this part of it."""


class NodeDiagnostics:
    """Implements ops.debugging.Debugging for a node, from the start of the process on."""

    def __init__(self, loaded: Loaded, node: Node) -> None:
        settings = loaded.config.diagnostics
        self._loaded, self._node = loaded, node
        self._loop = asyncio.get_running_loop()
        self._restart_after_s = settings.restart_after_ns / _NS
        self.checks: Callable[[], Mapping[str, str]] = dict
        """What /health/detailed says; set once that can be asked."""
        self.remote = settings.remote
        self.watchdog = Watchdog(settings.path, settings.stall_after_ns / _NS)
        least = max(_NEARLY_FULL * loaded.config.persistence.min_free_bytes, _total_bytes(loaded) // _SHARE)
        self.progress = Progress(node.clock, self._moment, least)
        self.duties = (self.watchdog, self.progress)
        scrub = Scrubber(secrets_of(loaded, os.environ))
        self.recorder = FlightRecorder(settings.path, settings.log_size_bytes, scrub)

    def server(self, operations: Operations, monitor: Monitor, listener: socket.socket) -> ServingThread:
        """The operations port, served by a thread of its own."""
        from knhk.ops.app import create_app
        from knhk.ops.bridge import Bridge
        from knhk.ops.debugging import create_debug_app

        bridge = Bridge(
            self._loop,
            create_app(operations, monitor),
            fallback=create_app(operations),
            debug=create_debug_app(self),
            blocked=lambda: self.blocked,
        )
        return ServingThread(bridge, listener, "operations")

    async def start(self, api: str, operations: str) -> None:
        """Begin to record and to watch."""
        config = self._loaded.config
        about = {
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "started_at": rfc3339(self._node.clock.now_ns()),
            "version": __version__,
            "node_id": config.platform.node_id,
            "api": api,
            "operations": operations,
            "config": str(self._loaded.path or ""),
            "data": str(config.persistence.path),
        }
        self._node.metrics.show("watchdog", self.watchdog.families)
        logs.keep(self.recorder.take)
        self._node.metrics.show("progress", self.progress.families)
        for duty in self.duties:
            await duty.start()
        try:
            self.recorder.start(about)
        except OSError as error:
            get("knhk.diagnostics").warning("the flight recorder cannot write", reason=str(error))

    async def stop(self) -> None:
        """End; the last thing that a process does."""
        for duty in reversed(self.duties):
            await duty.stop()
        logs.flush()
        logs.keep_no_more(self.recorder.take)
        self.recorder.stop()

    def _moment(self) -> Moment:
        committer = self._node.engine.committer
        return Moment(
            commits=committer.statistics.commit_seconds.count,
            committing=committer.busy,
            height=committer.height,
            projected=self._node.engine.projector.cursor,
            free_bytes=self._node.store.free_bytes(),
        )

    @property
    def blocked(self) -> str | None:
        """Why the event loop does not turn, None if it does."""
        stall = self.watchdog.stall
        return None if stall is None else str(stall)

    @property
    def stuck(self) -> str | None:
        """Why nothing can be recorded, though no error says so: a blocked event loop, a disk that does not answer."""
        return self.blocked or self.progress.stuck

    @property
    def hopeless(self) -> str | None:
        """The same once it has lasted so long that only a restart can help."""
        stall = self.watchdog.stall
        return str(stall) if stall is not None and stall.seconds >= self._restart_after_s else None

    def tasks(self) -> dict[str, Any]:
        return {"blocked": self.blocked, "threads": stacks.threads(), **stacks.tasks(self._loop)}

    def logs(self, limit: int) -> list[str]:
        return self.recorder.lines(limit)

    def configuration(self) -> list[dict[str, str]]:
        return [row._asdict() for row in redacted(self._loaded)]

    def resources(self) -> dict[str, Any]:
        engine, config = self._node.engine, self._loaded.config
        commits = engine.committer.statistics.commit_seconds
        found = {
            "version": __version__,
            "node_id": config.platform.node_id,
            "process": resources.of_process(),
            "disks": [resources.of_disk(config.persistence.path)],
            "store": self._node.store.statistics(),
            "engine": {
                "active": len(engine.scheduler.active),
                "max_active": config.platform.max_concurrent_workflows,
                "queued": len(engine.scheduler.pending),
                "max_queued": config.platform.max_queued_workflows,
                "steps_running": engine.executor.running,
                "max_steps_running": config.platform.max_concurrent_steps,
                "steps_waiting": engine.executor.waiting,
                "projection_lag_blocks": max(0, engine.committer.height - engine.projector.cursor),
                "commits": commits.count,
                "commit_mean_s": commits.total / max(commits.count, 1),
                "loop_lag_s": round(self.watchdog.lag_s(), 4),
            },
            "blocked": self.blocked,
            "stalls": [str(stall) for stall in self.watchdog.stalls],
            "checks": dict(self.checks()),
        }
        return found | {"findings": [msgspec.structs.asdict(one) for one in resources.findings(found)]}

    def profile(self, seconds: float, stop: threading.Event) -> dict[str, Any]:
        return dict(msgspec.to_builtins(sampler.profile(seconds, stop)))

    def heap(self) -> dict[str, Any]:
        return memory.heap(self._node.store.statistics())

    def allocations(self, seconds: float, stop: threading.Event) -> dict[str, Any]:
        return memory.allocations(seconds, stop)

    def collect(self) -> dict[str, Any]:
        return memory.collect(self._node.store.statistics())


def _total_bytes(loaded: Loaded) -> int:
    total: int = resources.of_disk(loaded.config.persistence.path)["total_bytes"]
    return total
