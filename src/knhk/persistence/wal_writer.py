"""The thread that syncs the log. RocksDB's fsync releases the interpreter's lock, so the event loop goes on meanwhile.

Whatever was asked for while a sync was under way is done by the next one together: its writes are in the log already.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue

import msgspec

from knhk.domain.errors import KnhkError

Done = Callable[[KnhkError | None], None]


class _Job(msgspec.Struct, frozen=True):
    loop: asyncio.AbstractEventLoop
    done: Done


class WalWriter:
    """Runs `sync`, which raises KnhkError, in one thread, and reports to the event loop."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="knhk-wal", daemon=True)
        self._thread.start()

    def submit(self, done: Done) -> None:
        """Sync what is written by now, then call `done` on the running loop."""
        self._jobs.put(_Job(asyncio.get_running_loop(), done))

    def stop(self) -> None:
        """Finish what was submitted and end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            taken = [self._jobs.get()]
            while not self._jobs.empty():
                taken.append(self._jobs.get())
            jobs = [job for job in taken if job is not None]
            stopping = len(jobs) < len(taken)
            if jobs:
                self._sync_for(jobs)

    def _sync_for(self, jobs: list[_Job]) -> None:
        error: KnhkError | None = None
        try:
            self._sync()
        except KnhkError as failed:
            error = failed
        for job in jobs:
            with contextlib.suppress(RuntimeError):  # the loop was closed; nobody waits any more
                job.loop.call_soon_threadsafe(job.done, error)
