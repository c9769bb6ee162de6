"""A profile of where the process spends CPU time, by looking at its threads a hundred times a second.

How much CPU time a thread used is known exactly, from the kernel. What it used it for is estimated from the stacks
that were seen: one that was there at n looks has n intervals of it. A thread that is mostly seen waiting used what is
left of its time in native code between the looks, as the event loop does for sockets and HTTP. Threads of native code
alone (RocksDB's) are told by their names.
"""

import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, Final

import msgspec

INTERVAL_S: Final = 0.01
LONGEST_S: Final = 300.0
MOST_STACKS: Final = 20_000
_MOST_FRAMES: Final = 150
_TASKS: Final = Path("/proc/self/task")
_OTHER: Final = ("(other stacks)",)
_NATIVE: Final = "(native code between calls)"
_SWITCH_S: Final = 2e-5
_NUMBER: Final = re.compile(r"[_-]\d+$")
"""The threads of a pool are shown as one."""
_LOOP: Final = "Runner.run (asyncio"
_BEGINNING: Final = ("Thread._bootstrap", "Thread.run (threading")
_WAITING: Final = (_LOOP, "Condition.wait (threading", "Event.wait (threading", "_worker (concurrent")
"""Functions in which a thread waits; the event loop's native code runs below the first."""


class Stack(msgspec.Struct):
    """CPU time of one stack, outermost call first, in one thread."""

    thread: str
    frames: tuple[str, ...]
    cpu_ns: int = 0


class Profile(msgspec.Struct):
    """What was seen. `cpu_ns` is that of the whole process, `stacks` what of it was seen in Python's threads."""

    seconds: float
    looks: int
    cpu_ns: int
    stacks: list[Stack]
    native: dict[str, int]
    """CPU time in ns by the name of a thread that runs no Python."""


def profile(seconds: float, stop: threading.Event) -> Profile:
    """Look for so long, or until `stop` is set. Blocks: call it in a thread, which itself is left out."""
    clocks, names = _Clocks(), _Names()
    threads: dict[int, _Seen] = {}
    began_s, began_cpu_ns, own, looks = time.monotonic(), time.process_time_ns(), threading.get_native_id(), 0
    first = before = clocks.read()
    interval_s = sys.getswitchinterval()
    # A look must not have to wait until the thread that is looked at gives up Python's lock by itself, because it then
    # waits for something: only what it waits for would ever be seen.
    sys.setswitchinterval(_SWITCH_S)
    try:
        while not stop.wait(INTERVAL_S) and time.monotonic() - began_s < seconds:
            frames, now = sys._current_frames(), clocks.read()
            looks += 1
            for thread in threading.enumerate():
                native_id, frame = thread.native_id, frames.get(thread.ident or 0)
                if native_id is None or frame is None or native_id == own:
                    continue
                seen = threads.setdefault(native_id, _Seen(_NUMBER.sub("", thread.name)))
                if now.get(native_id, 0) > before.get(native_id, 0):
                    seen.look(names.stack(frame))
            before = now
            del frames
    finally:
        sys.setswitchinterval(interval_s)
    elapsed_s, cpu_ns = time.monotonic() - began_s, time.process_time_ns() - began_cpu_ns
    used = {native_id: now_ns - first.get(native_id, 0) for native_id, now_ns in before.items() if native_id != own}
    native = {native_id: ns for native_id, ns in used.items() if native_id not in threads and ns > 0}
    by_name: dict[str, int] = {}
    for native_id, ns in native.items():
        name = clocks.name(native_id)
        by_name[name] = by_name.get(name, 0) + ns
    clocks.close()
    interval_ns = elapsed_s * 1e9 / max(looks, 1)
    stacks = [stack for one, seen in threads.items() for stack in seen.stacks(used.get(one, 0), interval_ns)]
    return Profile(elapsed_s, looks, cpu_ns, stacks, by_name)


class _Seen:
    """How often each stack of one thread was seen, while the thread used CPU time at all."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._counts: dict[tuple[str, ...], int] = {}
        self._waits: dict[tuple[str, ...], int] = {}

    def look(self, stack: tuple[str, ...]) -> None:
        counts = self._waits if stack[-1].startswith(_WAITING) else self._counts
        if stack not in counts and len(counts) >= MOST_STACKS:
            stack = _OTHER
        counts[stack] = counts.get(stack, 0) + 1

    def stacks(self, used_ns: int, interval_ns: float) -> list[Stack]:
        """The thread's CPU time, divided among its stacks."""
        looks = sum(self._counts.values())
        python_ns = min(used_ns, looks * interval_ns) if self._waits else used_ns
        found = [Stack(self._name, frames, int(python_ns * count / looks)) for frames, count in self._counts.items()]
        rest_ns, waits = used_ns - python_ns if looks else used_ns, sum(self._waits.values())
        for frames, count in self._waits.items():
            found.append(Stack(self._name, (*frames, _NATIVE), int(rest_ns * count / waits)))
        return [one for one in found if one.cpu_ns > 0]


class _Clocks:
    """CPU time of each thread of the process in nanoseconds, by native id, from /proc (proc_pid_schedstat)."""

    def __init__(self) -> None:
        self._files: dict[int, Any] = {}

    def read(self) -> dict[int, int]:
        found = {}
        for native_id in self._threads():
            try:
                file = self._files.get(native_id)
                if file is None:
                    file = self._files[native_id] = (_TASKS / str(native_id) / "schedstat").open("rb", buffering=0)
                file.seek(0)
                found[native_id] = int(file.read(64).split()[0])
            except (OSError, ValueError, IndexError):  # it has just ended
                self._forget(native_id)
        return found

    def name(self, native_id: int) -> str:
        """The name that the kernel has for a thread."""
        try:
            return (_TASKS / str(native_id) / "comm").read_text().strip()
        except OSError:
            return "(ended)"

    def close(self) -> None:
        for native_id in list(self._files):
            self._forget(native_id)

    def _threads(self) -> Iterator[int]:
        return (int(entry.name) for entry in _TASKS.iterdir())

    def _forget(self, native_id: int) -> None:
        file = self._files.pop(native_id, None)
        if file is not None:
            file.close()


class _Names:
    """What frames are called: the function and its file, the same for every line of it."""

    def __init__(self) -> None:
        self._known: dict[CodeType, str] = {}

    def stack(self, frame: Any) -> tuple[str, ...]:
        found: list[str] = []
        while frame is not None and len(found) < _MOST_FRAMES:
            found.append(self._name(frame.f_code))
            frame = frame.f_back
        found.reverse()
        begin = next((at for at, name in enumerate(found) if not name.startswith(_BEGINNING)), len(found) - 1)
        loop = next((at for at, name in enumerate(found) if name.startswith(_LOOP)), -1)
        # How the process or the thread came to be here is the same for all; what the loop calls may begin without it.
        return tuple(found[max(begin, min(loop + 1, len(found) - 1)) :])

    def _name(self, code: CodeType) -> str:
        name = self._known.get(code)
        if name is None:
            name = self._known[code] = f"{code.co_qualname} ({short_file(code.co_filename)}:{code.co_firstlineno})"
        return name


def short_file(file: str) -> str:
    """A source file's path below the directory that packages are in."""
    for mark in ("site-packages/", "/src/", "/lib/python"):
        _, found, rest = file.rpartition(mark)
        if found:
            return rest.partition("/")[2] if mark == "/lib/python" else rest
    return file
