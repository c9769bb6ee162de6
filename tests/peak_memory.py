"""How much memory a process comes to have while something is done."""

import contextlib
import threading
from collections.abc import Iterator

import psutil


@contextlib.contextmanager
def peak_of(pid: int) -> Iterator[list[int]]:
    """What memory the process has from now to the end of the block, in bytes; the first is what it had before."""
    process = psutil.Process(pid)
    peak, stopped = [process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not stopped.wait(0.005):
            peak.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        stopped.set()
        watcher.join()
