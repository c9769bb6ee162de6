"""What the supervisor and a process tell each other: a line of JSON each, over a socket that nobody else has."""

import asyncio
import socket
from contextlib import suppress
from typing import Generic, TypeVar

import msgspec

Heard = TypeVar("Heard", bound=msgspec.Struct)


class Plan(msgspec.Struct, frozen=True):
    """From the supervisor, whenever something changes.

    `wanted` is the process that ought to own a partition, `owners` the one that does; a partition that is missing there
    is between two owners, or its process is being started again. `apis` are the URLs at which processes ask each other.
    """

    partitions: int
    wanted: dict[int, int]
    owners: dict[int, int]
    apis: dict[int, str]


class Report(msgspec.Struct, frozen=True):
    """From a process, whenever something changes. `owned` are the partitions whose store it has open.

    `ready`: it answers requests. `failure`: why it cannot start, as the name of the error's class, message and hint.
    `asked`: the number of processes that there ought to be from now on, 0 if it has no wish.
    """

    api: str = ""
    operations: str = ""
    owned: tuple[int, ...] = ()
    ready: bool = False
    failure: tuple[str, str, str] | None = None
    asked: int = 0


class Channel(Generic[Heard]):
    """One end. `kind` is what the other end says."""

    def __init__(self, end: socket.socket, kind: type[Heard]) -> None:
        self._end = end
        self._decoder = msgspec.json.Decoder(kind)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Begin. Call it on the loop that uses the channel."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._end)

    def say(self, message: msgspec.Struct) -> None:
        """Tell the other end; nothing happens if it is gone."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")

    async def hear(self) -> Heard | None:
        """The next message; None if the other end is gone."""
        assert self._reader is not None
        try:
            line = await self._reader.readline()
        except OSError:
            return None
        return self._decoder.decode(line) if line.endswith(b"\n") else None

    async def close(self) -> None:
        """Let go of it, once what was said has gone out."""
        if self._writer is None:
            self._end.close()
            return
        with suppress(OSError):
            self._writer.close()
            await self._writer.wait_closed()
