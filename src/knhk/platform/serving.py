"""Serving ASGI applications on the loop of the process, without giving uvicorn its signals."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from knhk.domain.errors import InvalidConfiguration

_BACKLOG = 4096
_KEEP_ALIVE_S = 75
_JOIN_S = 5.0
_LOOK_S = 0.02
_NEW_S = 0.5
CLOSE = (b"connection", b"close")


class _Server(uvicorn.Server):
    """Signals belong to the process, which drains the engine before it stops answering."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Serving:
    """One application on one socket; `protocol` speaks HTTP, uvicorn's unless told otherwise."""

    def __init__(
        self, application: Any, listener: socket.socket, protocol: type[asyncio.Protocol] = HttpToolsProtocol
    ) -> None:
        self._listener = listener
        self._server = _Server(
            uvicorn.Config(
                application,
                http=protocol,
                loop="none",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=2,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started and not self._task.done():  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.001)

    def drain(self) -> None:
        """Let every answer from now on be the last on its connection, so that clients go to another server."""
        self._server.config.encoded_headers.append(CLOSE)
        self._server.server_state.default_headers = [CLOSE]

    async def finish(self, limit_s: float) -> None:
        """Take no more connections, and answer what comes on those that are there; not longer than this.

        Streams, which have no end, are not waited for; nor, for long, are connections on which nothing was asked yet.
        """
        for server in self._server.servers:
            server.close()
        connections, now = self._server.server_state.connections, asyncio.get_running_loop().time
        over, new_over = now() + limit_s, now() + min(limit_s, _NEW_S)
        while now() < over and any(  # noqa: ASYNC110  # uvicorn has no event for it
            _is_answering(one) or (_is_new(one) and now() < new_over) for one in connections
        ):
            await asyncio.sleep(_LOOK_S)

    def ask_to_stop(self) -> None:
        """Let it end soon. May be called in any thread."""
        self._server.should_exit = True

    async def stop(self) -> None:
        """Answer what is under way, close the connections, end."""
        self.ask_to_stop()
        await self.ended()

    async def ended(self) -> None:
        """Wait for its end."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


def _is_answering(connection: Any) -> bool:
    cycle = getattr(connection, "cycle", None)
    return cycle is not None and not cycle.response_complete and not getattr(cycle, "chunked_encoding", False)


def _is_new(connection: Any) -> bool:
    return getattr(connection, "cycle", None) is None


class ServingThread:
    """One application on one socket, by a thread with a loop of its own: it answers while the caller's is blocked."""

    def __init__(self, application: Any, listener: socket.socket, name: str) -> None:
        self._serving = Serving(application, listener)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._up = threading.Event()

    async def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        await asyncio.to_thread(self._up.wait)

    async def stop(self) -> None:
        """Answer what is under way, close the connections, end the thread."""
        self._serving.ask_to_stop()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, _JOIN_S)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            await self._serving.start()
        finally:
            self._up.set()
        await self._serving.ended()


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket. Raises InvalidConfiguration, naming the setting, if the address cannot be had."""
    return _bound(host, port, setting, shared=False)


def share(host: str, port: int, setting: str) -> socket.socket:
    """A socket on an address that processes share: the kernel gives each connection to one of those that listen.

    It does not listen yet. Raises InvalidConfiguration as `listen` does, if somebody has it and does not share.
    """
    return _bound(host, port, setting, shared=True)


def _bound(host: str, port: int, setting: str, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
        if not shared:
            bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise InvalidConfiguration(
            f"{setting}: cannot listen on {host}:{port}: {error.strerror}",
            hint="Stop what uses this port, or choose another one in the configuration.",
        ) from error
    bound.setblocking(False)
    return bound
