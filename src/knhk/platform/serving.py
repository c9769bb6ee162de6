"""Serving ASGI applications on the loop of the process, without giving uvicorn its signals."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from knhk.domain.errors import InvalidConfiguration

_BACKLOG = 4096
_KEEP_ALIVE_S = 75


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

    async def stop(self) -> None:
        """Answer what is under way, close the connections, end."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket. Raises InvalidConfiguration, naming the setting, if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidConfiguration(
            f"{setting}: cannot listen on {host}:{port}: {error.strerror}",
            hint="Stop what uses this port, or choose another one in the configuration.",
        ) from error
    listener.setblocking(False)
    return listener
