"""What the process is doing right now: the stacks of its threads and tasks, and who is to blame when one is stuck.

Reads frames of running threads: names of functions, files and lines, and which attempt is under way. Never values, so
that nothing here can tell a secret.
"""

import asyncio
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import CoroutineType, FrameType
from typing import Any, Final

import msgspec

from knhk.actions.registry import Action, Invocation

MOST_TASKS: Final = 2_000
MOST_FRAMES: Final = 100
_OURS: Final = str(Path(__file__).resolve().parents[1]) + "/"
_INSTALLED: Final = tuple(
    dict.fromkeys(f"{sysconfig.get_path(name)}/" for name in ("purelib", "platlib", "stdlib", "platstdlib"))
)


class Place(msgspec.Struct, frozen=True):
    """A line of code that is being executed."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


class Culprit(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who keeps a thread busy: the place, and the attempt that it is part of, where there is one."""

    place: Place
    inside: Place
    """The innermost call: the same place, or what it called in a library."""
    workflow_id: str = ""
    step: str = ""
    action: str = ""
    attempt: int = 0

    def __str__(self) -> str:
        within = "" if self.inside == self.place else f", in {self.inside.function}"
        about = f" of step {self.step!r} of {self.workflow_id}" if self.step else ""
        action = f"action {self.action!r}{about}: " if self.action else ""
        return f"{action}{self.place}{within}"


def places_of(frame: FrameType | None) -> list[Place]:
    """The stack that ends in a frame, innermost first."""
    found: list[Place] = []
    while frame is not None and len(found) < MOST_FRAMES:
        code = frame.f_code
        found.append(Place(code.co_qualname, code.co_filename, frame.f_lineno or code.co_firstlineno))
        frame = frame.f_back
    return found


def to_blame(stack: Sequence[Place]) -> Place:
    """The line that somebody should look at: the innermost of the user's own code, else of a library, else of ours."""

    def rank(place: Place) -> int:
        if place.file.startswith("<") or place.file.startswith(_OURS):
            return 2
        return 1 if place.file.startswith(_INSTALLED) else 0

    return min(stack, key=rank)  # the first of the lowest rank, and the stack begins innermost


def culprit_of(frame: FrameType) -> Culprit:
    """Who is executing in a frame's thread."""
    stack = places_of(frame)
    invocation, action = _attempt_in(frame)
    place = to_blame(stack)
    if invocation is None:
        return Culprit(place, stack[0], action=action)
    return Culprit(place, stack[0], invocation.workflow_id, invocation.step, action, invocation.attempt)


def _attempt_in(frame: FrameType | None) -> tuple[Invocation | None, str]:
    """The attempt that a thread is performing: the executor's own frames hold it."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "knhk.engine.executor":
            values = frame.f_locals
            invocation, action = values.get("invocation"), values.get("action")
            if isinstance(invocation, Invocation) and isinstance(action, Action):
                return invocation, action.traits.name
        frame = frame.f_back
    return None, ""


def threads() -> list[dict[str, Any]]:
    """Every thread with its stack, innermost call first."""
    names = {thread.ident: thread for thread in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():
        thread = names.get(ident)
        invocation, action = _attempt_in(frame)
        found.append(
            {
                "name": thread.name if thread is not None else f"thread {ident}",
                "native_id": thread.native_id if thread is not None else None,
                "daemon": thread.daemon if thread is not None else None,
                "workflow_id": invocation.workflow_id if invocation is not None else None,
                "step": invocation.step if invocation is not None else None,
                "action": action or None,
                "stack": [str(place) for place in places_of(frame)],
            }
        )
    return sorted(found, key=lambda one: (one["name"] != "MainThread", one["name"]))


def tasks(loop: asyncio.AbstractEventLoop, limit: int = MOST_TASKS) -> dict[str, Any]:
    """The tasks of a loop, which may belong to another thread: up to `limit` of them, and how many there are."""
    known = asyncio.all_tasks(loop)
    current = asyncio.current_task(loop)
    rows = [_task(task, current) for task in sorted(known, key=lambda one: one.get_name())[:limit]]
    return {"count": len(known), "tasks": rows}


def _task(task: "asyncio.Task[Any]", current: "asyncio.Task[Any] | None") -> dict[str, Any]:
    name = task.get_name()
    workflow_id, _, step = name.partition("/") if name.startswith("wf-") else ("", "", "")
    return {
        "name": name,
        "state": "running" if task is current else "cancelling" if task.cancelling() else "waiting",
        "workflow_id": workflow_id or None,
        "step": step or None,
        "stack": [str(place) for place in _awaited(task.get_coro())],
    }


def _awaited(coroutine: Any) -> list[Place]:
    """Where a coroutine is suspended, innermost first: along what each awaits."""
    found: list[Place] = []
    while isinstance(coroutine, CoroutineType) and len(found) < MOST_FRAMES:
        frame = coroutine.cr_frame
        if frame is not None:
            found.append(Place(coroutine.cr_code.co_qualname, coroutine.cr_code.co_filename, frame.f_lineno or 0))
        coroutine = coroutine.cr_await
    return found[::-1]


def from_fault_handler(text: str) -> list[Place]:
    """The stack with which a text begins that `faulthandler` wrote, innermost first."""
    return list(_leading(text.splitlines()))


def _leading(lines: Iterable[str]) -> Iterator[Place]:
    for line in lines:
        if not line.startswith('  File "'):
            return
        file, _, rest = line.removeprefix('  File "').partition('", line ')
        number, _, function = rest.partition(" in ")
        yield Place(function, file, int(number) if number.isdecimal() else 0)
