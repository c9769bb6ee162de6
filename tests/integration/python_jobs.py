"""What the tests of the `python` action call."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import knhk

imported = partial(print, "not a function")
pid_of_parent = os.getppid


def add(a: int, b: int = 1) -> dict[str, int]:
    return {"sum": a + b, "pid": os.getpid()}


async def later(a: int) -> int:
    return a


def who(context: knhk.ActionContext) -> list[Any]:
    print("printed text does not disturb the answers")
    return [context.idempotency_key, context.attempt, context.dependencies]


def sleep(seconds: float, pid_file: str = "") -> None:
    if pid_file:
        child = os.fork()
        if not child:
            time.sleep(300)
            os._exit(0)
        with open(pid_file, "w") as file:
            file.write(str(child))
    time.sleep(seconds)


def spin() -> None:
    while True:
        pass


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def refuse() -> None:
    raise knhk.ActionFailed("never", code="SHOP-NEVER")


def again() -> None:
    raise knhk.RetryAction("busy", after=1.5)


def raises() -> None:
    raise RuntimeError("boom")


def hungry() -> int:
    return len(bytearray(10**9))


def odd() -> Any:
    return {object()}


def letters(count: int, kind: str) -> Any:
    made = {"bytes": b"x" * count, "text": "ä" * (count // 2), "data": ["x"] * (count // 2)}
    return made[kind] if kind in made else knhk.Succeeded(b"x" * count)


def numbers(count: int) -> Iterator[dict[str, int]]:
    for number in range(count):
        yield {"number": number}


def stream(megabytes: int, dies: bool = False) -> Iterator[bytes]:
    for _ in range(megabytes):
        yield b"\n" * (1 << 20)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)


def breaks_off() -> Iterator[str]:
    yield "one"
    raise knhk.ActionFailed("no more", code="SHOP-NEVER")


def upper(text: knhk.Blob, context: knhk.ActionContext) -> Any:
    blobs = context.blobs
    with blobs.open(text) as file:
        head = file.read(3)
        file.seek(-2, os.SEEK_END)
        tail = file.read()
    whole = b"".join(blobs.read(text))
    assert len(whole) == blobs.size(text)
    assert b"".join(blobs.read(text, 1, 2)) == whole[1:3]
    made = blobs.put((piece.upper() for piece in blobs.read(text)), "text/x-upper")
    return {"head": head.decode(), "tail": tail.decode(), "upper": made}


def missing_blob(context: knhk.ActionContext) -> None:
    next(context.blobs.read("sha256:" + "0" * 64))


def _private() -> None: ...


class Thing:
    """Is no function."""
