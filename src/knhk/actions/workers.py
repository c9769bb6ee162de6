"""Attempts that wait for a remote worker: by queue and action, first come first served, and who waits for them."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from knhk.actions.transport import Assignment

ANY: Final = "*"
"""Stands for every queue in what a worker asks for."""


class Task:
    """One attempt for a worker. `context` and `leases` are the engine's. A lease that is over leaves `token` 0."""

    __slots__ = (
        "assignment",
        "context",
        "gone",
        "lease_ns",
        "leases",
        "number",
        "queue",
        "token",
        "until_ns",
        "worker",
    )

    def __init__(self, queue: str, assignment: Assignment, context: Any, leases: Any = None) -> None:
        self.queue, self.assignment, self.context, self.leases = queue, assignment, context, leases
        self.number = 0
        self.token = 0
        self.worker = ""
        self.lease_ns = 0
        self.until_ns = 0
        self.gone = False


class Wanted:
    """What a worker asks for: tasks of these queues, and of these actions unless there are none. `wake` is called once
    when there may be one."""

    __slots__ = ("actions", "queues", "wake")

    def __init__(self, queues: Collection[str], actions: Collection[str], wake: Any) -> None:
        self.queues, self.actions, self.wake = frozenset(queues), frozenset(actions), wake

    def fits(self, queue: str, action: str) -> bool:
        """Whether it asks for such a task."""
        return (queue in self.queues or ANY in self.queues) and (not self.actions or action in self.actions)


class TaskQueues:
    """All tasks that no worker has, oldest first. A task that is put back keeps its place."""

    def __init__(self) -> None:
        self._numbers = 0
        self._tasks: dict[tuple[str, str], deque[Task]] = {}
        self._waiting: dict[Wanted, None] = {}
        self._looking: dict[Wanted, None] = {}

    def put(self, task: Task) -> None:
        """Add a task, and wake the worker that has waited longest for one like it."""
        key = (task.queue, task.assignment.action)
        tasks = self._tasks.setdefault(key, deque())
        if task.number:
            tasks.appendleft(task)
        else:
            self._numbers += 1
            task.number = self._numbers
            tasks.append(task)
        self._wake(key)

    def take(self, wanted: Wanted, limit: int) -> list[Task]:
        """Up to `limit` tasks that it asks for, the oldest first."""
        fitting = {key: tasks for key, tasks in self._tasks.items() if wanted.fits(*key)}
        found: list[Task] = []
        while len(found) < limit:
            heads = [(tasks[0].number, key) for key, tasks in fitting.items() if _first(tasks)]
            if not heads:
                break
            found.append(fitting[min(heads)[1]].popleft())
        for key, tasks in fitting.items():
            if not tasks:
                del self._tasks[key]
        return found

    def wait(self, wanted: Wanted) -> None:
        """Wake it once when there may be a task for it."""
        self._waiting[wanted] = None

    def leave(self, wanted: Wanted) -> None:
        """Do not wake it any more."""
        self._waiting.pop(wanted, None)

    def look(self, wanted: Sequence[Wanted]) -> None:
        """Wake them too when there may be a task for them, besides the one of those who wait for whom it is."""
        self._looking.update(dict.fromkeys(wanted))

    def look_away(self, wanted: Sequence[Wanted]) -> None:
        """Do not wake them any more."""
        for one in wanted:
            self._looking.pop(one, None)

    def fitting(self, wanted: Wanted) -> int:
        """How many tasks there are that it asks for."""
        found = (tasks for key, tasks in self._tasks.items() if wanted.fits(*key))
        return sum(not task.gone for tasks in found for task in tasks)

    def nudge(self) -> None:
        """Wake one of those who wait for each kind of task that there is."""
        for key, tasks in self._tasks.items():
            if _first(tasks):
                self._wake(key)

    def close(self) -> None:
        """Wake everybody who waits."""
        for kind in (self._waiting, self._looking):
            while kind:
                wanted, _ = kind.popitem()
                wanted.wake()

    def counts(self) -> dict[str, int]:
        """How many tasks wait in each queue."""
        found: dict[str, int] = {}
        for (queue, _), tasks in self._tasks.items():
            found[queue] = found.get(queue, 0) + sum(not task.gone for task in tasks)
        return found

    def _wake(self, key: tuple[str, str]) -> None:
        for wanted in [one for one in self._looking if one.fits(*key)]:
            wanted.wake()
        for wanted in self._waiting:
            if wanted.fits(*key):
                del self._waiting[wanted]
                wanted.wake()
                return

    def __iter__(self) -> Iterator[Task]:
        return (task for tasks in self._tasks.values() for task in tasks if not task.gone)


def _first(tasks: deque[Task]) -> Task | None:
    """The first task that is still wanted."""
    while tasks and tasks[0].gone:
        tasks.popleft()
    return tasks[0] if tasks else None
