"""`knhk worker`: performs steps of a server in this process, with actions of your modules."""

import asyncio
import os
import signal
import threading
from typing import Annotated, Any

import typer

from knhk.cli import exit_codes
from knhk.cli.options import SERVER, ServerOption
from knhk.domain.errors import InvalidParameter


def worker(
    module: Annotated[
        list[str],
        typer.Option("--module", "-m", help="Python module with actions that this worker performs. Repeatable."),
    ],
    queue: Annotated[list[str], typer.Option("--queue", "-q", help="Queue to take attempts from. Repeatable.")],
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=1000, help="Attempts at the same time.")] = 4,
    lease: Annotated[
        str,
        typer.Option("--lease", help="After so long without a sign of life, an attempt is given to another worker."),
    ] = "60s",
    grace: Annotated[
        str, typer.Option("--grace", help="How long a worker that is stopped finishes what it has.")
    ] = "30s",
    name: Annotated[
        str, typer.Option("--name", help="This worker's name in receipts; by default host and process.")
    ] = "",
    server: ServerOption = SERVER,
    log_level: Annotated[
        str, typer.Option("--log-level", envvar="KNHK_LOG_LEVEL", help="Least severe messages.")
    ] = "info",
) -> None:
    """Perform steps of a server in this process, until SIGTERM or Ctrl-C.

    It then takes nothing more, finishes what it has, and gives back what takes longer than --grace.
    """
    from knhk.domain.units import SECOND, parse_duration_ns
    from knhk.observability.logs import configure

    try:
        lease_ns, grace_ns = parse_duration_ns(lease), parse_duration_ns(grace)
        configure(log_level)
    except ValueError as error:
        raise InvalidParameter(f"knhk worker: {error}") from error
    if lease_ns < SECOND:
        raise InvalidParameter("--lease: at least 1s")
    limits = {"concurrency": concurrency, "lease_s": lease_ns / SECOND, "grace_s": grace_ns / SECOND}
    if not _work(server, module, queue, name or f"{os.uname().nodename}-{os.getpid()}", limits):
        raise typer.Exit(exit_codes.FAILED)


def _work(server: str, modules: list[str], queues: list[str], name: str, limits: dict[str, Any]) -> bool:
    """Work until a signal; whether all that was under way came to its end in time. A second signal ends it at once."""
    import uvloop

    from knhk.actions.registry import Registry
    from knhk.observability.logs import flush, get
    from knhk.sdk.worker import THREAD_NAME, Worker

    async def main() -> bool:
        registry, log, stopping = Registry.of(modules), get("knhk.worker"), asyncio.Event()
        made = Worker(server, registry, queues, name=name, tell=log.warning, **limits)

        def stop() -> None:
            if stopping.is_set():
                flush()
                os._exit(exit_codes.FAILED)
            stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        log.info("ready", worker=name, queues=queues, actions=sorted(registry.traits()), server=server)
        finished = await made.run(stopping)
        log.info("stopped", finished=finished)
        return finished

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        finished = runner.run(main())
    if any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()):
        # An action that blocks for ever in a thread would keep the interpreter from ending.
        flush()
        os._exit(exit_codes.OK if finished else exit_codes.FAILED)
    return finished
