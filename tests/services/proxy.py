"""A TCP proxy whose network can be cut: connections refused and reset, or bytes that vanish without a word."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from typing import Any, Literal

Mode = Literal["forward", "refuse", "swallow", "swallow-answers", "stall", "half-close"]


class Proxy:
    """Listens on a free loopback port and forwards to `target`, in a thread of its own.

    `refuse` resets what is connected and refuses the rest. `swallow` lets bytes vanish in both directions, as a
    firewall that drops packets; `swallow-answers` only those that come back. `stall` holds bytes and new connections
    back until the mode changes. `half-close` ends the direction of the answers, and lets the other one go on.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.mode: Mode = "forward"
        self.late_bytes = 0
        """How much of what clients sent was held back, and passed on later."""
        self._links: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._do(self._listen())

    def set(self, mode: Mode) -> None:
        """Change what becomes of connections, those that exist included."""
        self._do(self._set(mode))

    def close(self) -> None:
        self._do(self._set("refuse"))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=20)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _set(self, mode: Mode) -> None:
        swallowed = self.mode in ("swallow", "swallow-answers", "half-close")
        self.mode = mode
        if mode == "refuse" or (swallowed and mode == "forward"):
            for writer in tuple(self._links):  # what was swallowed is missing: the connection cannot go on
                writer.transport.abort()
            self._links.clear()
        if mode == "half-close":
            for writer in self._clients:
                _end(writer)
        self._flowing.clear() if mode == "stall" else self._flowing.set()
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
        elif mode != "refuse" and self._server is None:
            await self._listen()
        await asyncio.sleep(0.05)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._links.add(writer)
        self._clients.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._flowing.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            self._links.add(back)
            if self.mode == "half-close":
                _end(writer)
            await asyncio.gather(
                self._pass(reader, back, ("swallow",)),
                self._pass(there, writer, ("swallow", "swallow-answers", "half-close")),
            )
            self._links -= {back}
        self._links -= {writer}
        self._clients -= {writer}
        writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silent: tuple[str, ...]) -> None:
        try:
            while data := await reader.read(1 << 16):
                held = not self._flowing.is_set()
                await self._flowing.wait()
                self.late_bytes += len(data) if held and writer not in self._clients else 0
                if self.mode not in silent:
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.transport.abort()


def _end(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.write_eof()
