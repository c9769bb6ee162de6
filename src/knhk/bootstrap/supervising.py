"""The supervisor of a server of several processes: starts them, speaks for all of them on the operations port."""

import asyncio
import os
import pickle
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from dataclasses import replace
from functools import partial

from knhk import __version__
from knhk.bootstrap.forces import Force
from knhk.config import Loaded
from knhk.observability.logs import get
from knhk.persistence.postgres_options import public_name
from knhk.platform.clock import SystemClock
from knhk.platform.serving import Serving, listen, share
from knhk.processes.supervisor import Supervisor
from knhk.recovery.adopt import settle


async def supervise(loaded: Loaded, force: Force) -> int:
    """Serve with several processes until a signal or /shutdown; the exit code. Raises why they cannot start."""
    from knhk.bootstrap.recovery import compose_snapshot
    from knhk.bootstrap.together import Together
    from knhk.ops.together import create_app

    config, log = loaded.config, get("knhk.serve")
    if not config.persistence.url:
        await asyncio.to_thread(settle, config.persistence.path)  # all of a copy, before the first process writes to it
    operations_config = config.observability
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with _reserved(config.api.host, config.api.port) as place:
        host, port = place.getsockname()[:2]
        listener = listen(operations_config.metrics_host, operations_config.metrics_port, "observability.metrics_port")
        loaded = replace(loaded, config=config.model_copy(update={"api": config.api.model_copy(update={"port": port})}))

        async def launch(number: int, end: socket.socket) -> Process:
            return await _launched(loaded, number, end)

        supervisor = Supervisor(
            launch, force.partitions, SystemClock(), log.warning, stop_s=config.platform.shutdown_grace_ns / 1e9
        )
        compose = None if config.persistence.url else partial(compose_snapshot, config, SystemClock())
        together = Together(supervisor, stopping, compose)
        server = Serving(create_app(together), listener)
        try:
            await server.start()
            starting, asked = (
                asyncio.create_task(supervisor.start(force.processes)),
                asyncio.create_task(stopping.wait()),
            )
            await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                together.started = True
                log.info(
                    "ready",
                    api=f"http://{host}:{port}",
                    operations="http://{}:{}".format(*listener.getsockname()[:2]),
                    data=public_name(config.persistence.url) or str(config.persistence.path),
                    version=__version__,
                    processes=force.processes,
                    partitions=force.partitions,
                )
            await asked
            log.info("draining", grace_s=config.platform.shutdown_grace_ns / 1e9)
            await supervisor.stop()
            await asyncio.gather(starting, return_exceptions=True)
            return 0
        finally:
            await supervisor.stop()
            await together.close()
            await server.stop()
            log.info("stopped")


def _reserved(host: str, port: int) -> socket.socket:
    """The port of the API, kept for the processes while they come and go; nobody else may have it at the start."""
    listen(host, port, "api.port").close()
    return share(host, port, "api.port")


async def _launched(loaded: Loaded, number: int, end: socket.socket) -> Process:
    descriptor = end.fileno()
    process = await create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "knhk.bootstrap.seat", str(descriptor)),
        stdin=PIPE,
        pass_fds=(descriptor,),
        start_new_session=True,  # Ctrl-C in a terminal is for the supervisor, which then stops its processes
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps((loaded, number, os.getpid())))
    process.stdin.close()
    return process
