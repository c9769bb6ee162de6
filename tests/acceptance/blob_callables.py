"""What the tests of blobs call by the action `python`."""

import time
from collections.abc import Iterator
from pathlib import Path

import knhk

MiB = 1 << 20
SIZE = 20 * MiB


def lines(marker: str) -> Iterator[bytes]:
    """A blob; the first time it takes for ever."""
    for _ in range(10):
        yield b"x" * MiB
    if not Path(marker).exists():
        Path(marker).touch()
        time.sleep(300)
    for _ in range(10):
        yield b"y" * MiB


def made(megabytes: int) -> Iterator[bytes]:
    """So many different megabytes."""
    for number in range(megabytes):
        yield number.to_bytes(8) * (MiB // 8)


def measured(blob: knhk.Blob, context: knhk.ActionContext) -> int:
    """The size of a blob, read from its beginning to its end."""
    with context.blobs.open(blob) as file:
        return sum(len(piece) for piece in iter(lambda: file.read(MiB), b""))
