"""Attempts that wait for a place, and which of them is next: fair between departments, and between the runs of each.

The department with the fewest attempts under way is next, of equal ones that whose turn was longest ago; within it the
runs take turns. So neither one run of a thousand steps nor a department of a thousand runs holds up the others.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from knhk.engine.queue import Turns

Entry = TypeVar("Entry")


class StepSlots(Generic[Entry]):
    """What waits, by department and run. `running` counts what each department has under way; the caller keeps it."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self._waiting: dict[str, OrderedDict[int, deque[Entry]]] = {}
        self._turns = Turns(self.running.__getitem__)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Entry]:
        for runs in self._waiting.values():
            for entries in runs.values():
                yield from entries

    def add(self, department: str, run: int, entry: Entry) -> None:
        """Let something wait."""
        self._waiting.setdefault(department, OrderedDict()).setdefault(run, deque()).append(entry)
        self._count += 1

    def take(self) -> Entry:
        """What is next; there must be something."""
        department = self._turns.next(self._waiting)
        runs = self._waiting[department]
        run, entries = next(iter(runs.items()))
        entry = entries.popleft()
        if entries:
            runs.move_to_end(run)
        else:
            del runs[run]
            if not runs:
                del self._waiting[department]
        self._count -= 1
        self._turns.serve(department, self._waiting)
        return entry

    def left(self, department: str) -> None:
        """A department has one attempt less under way."""
        self.running[department] -= 1
        if not self.running[department]:
            del self.running[department]

    def clear(self) -> None:
        """Nothing waits any more."""
        self._waiting.clear()
        self._count = 0
