"""Actions that block the event loop, as users write them by mistake."""

import ctypes
import subprocess
import time

import knhk


def fetch_slowly(seconds: float) -> None:
    time.sleep(seconds)


@knhk.action("test.block")
async def block(seconds: float) -> dict[str, float]:
    """A blocking call in a coroutine."""
    fetch_slowly(seconds)
    return {"seconds": seconds}


@knhk.action("test.lock")
async def lock(seconds: int) -> dict[str, int]:
    """Native code that keeps Python's lock: no other thread of the process can run. A signal does not end it early."""
    sleeper = subprocess.Popen(["sleep", str(seconds)])
    ctypes.PyDLL(None).waitpid(sleeper.pid, None, 0)
    sleeper.returncode = 0
    return {"seconds": seconds}


@knhk.action("test.jump")
async def jump(seconds: int) -> None:
    """Somebody sets the machine's clock, as far as this process can see."""
    real = time.time_ns
    time.time_ns = lambda: real() + seconds * 1_000_000_000
