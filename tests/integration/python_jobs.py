"""What the tests of the `python` action call."""

import os
import signal
import time
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


def _private() -> None: ...


class Thing:
    """Is no function."""
