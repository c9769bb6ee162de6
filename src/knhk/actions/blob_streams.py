"""Streams into and out of the blob area, for what has an event loop: what blocks is done in threads."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Final, Literal

from knhk.domain.blob import OCTETS, BlobReference
from knhk.domain.errors import PayloadTooLarge
from knhk.domain.units import format_size
from knhk.ports.blobs import Blobs, BlobSink

PIECE_BYTES: Final = 1 << 20
Keep = Literal["auto", "always", "never"]
"""Whether what an action reads becomes a blob: `auto` if it is larger than `persistence.blobs.inline`."""


class Spill:
    """Takes a stream: held in memory while it is small, in a blob when it is not.

    `max_bytes` is what may come altogether. Leave it by `finish` or by `abort`.
    """

    def __init__(self, blobs: Blobs, keep: Keep, max_bytes: int) -> None:
        self._blobs, self._max_bytes = blobs, max_bytes
        self._inline_bytes = {"auto": blobs.inline_bytes, "always": -1, "never": max_bytes}[keep]
        self._held = bytearray()
        self._sink: BlobSink | None = None
        self.size = 0

    async def write(self, piece: bytes) -> None:
        """Add bytes. Raises PayloadTooLarge, and what the blob area raises."""
        self.size += len(piece)
        if self.size > self._max_bytes:
            raise PayloadTooLarge(f"more than {format_size(self._max_bytes)}")
        self._held += piece
        if self.size > self._inline_bytes and len(self._held) >= PIECE_BYTES:
            await self._flush()

    async def finish(self, media_type: str = OCTETS, expected: str = "") -> bytes | BlobReference:
        """All of it, or the blob that it is in."""
        if self.size <= self._inline_bytes:
            return bytes(self._held)
        sink = await self._flush()
        return await asyncio.to_thread(sink.finish, media_type, expected)

    async def abort(self) -> None:
        """Drop what came; nothing after `finish`."""
        if self._sink is not None:
            await asyncio.shield(asyncio.to_thread(self._sink.abort))

    async def _flush(self) -> BlobSink:
        if self._sink is None:
            self._sink = await asyncio.to_thread(self._blobs.begin)
        if self._held:
            piece, self._held = bytes(self._held), bytearray()
            await asyncio.to_thread(self._sink.write, piece)
        return self._sink


async def receive(
    blobs: Blobs, stream: AsyncIterator[bytes], media_type: str = OCTETS, expected: str = ""
) -> BlobReference:
    """A blob of everything that comes. Raises PayloadTooLarge, BlobMismatch, and what the blob area raises."""
    spill = Spill(blobs, "always", blobs.max_bytes)
    try:
        async for piece in stream:
            await spill.write(piece)
        kept = await spill.finish(media_type, expected)
    finally:
        await spill.abort()
    assert isinstance(kept, BlobReference)
    return kept


async def pieces(found: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a blob, each read in a thread."""
    while piece := await asyncio.to_thread(next, found, b""):
        yield piece
