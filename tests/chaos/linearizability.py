"""Whether a history of requests can be explained by requests that happened one at a time, each at an instant between
its beginning and its answer (Herlihy and Wing 1990).

Each run is an object of its own, and a history is linearizable if those of its objects are, so that every run is
decided alone. The search is that of Wing and Gong (1993): try whichever request may come first, go on with the rest.
Lowe (2017) adds that what was done and what it led to are remembered, so that no combination is gone into twice.
"""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

State = TypeVar("State", bound=Hashable)


class Operation(NamedTuple):
    """A request about one object. Times are of one monotonic clock, in seconds.

    One whose outcome nobody knows (no answer, or one that does not say whether it was done) has `answer` None and never
    ends: it may take effect at any time after it began, or never.
    """

    verb: str
    argument: str
    began: float
    ended: float = math.inf
    answer: Any = None


Step = Callable[[State, Operation], Iterable[State]]
"""What an object may be after an operation in a state; nothing if the operation cannot have been answered so."""


class History:
    """Operations by object, from many threads."""

    def __init__(self) -> None:
        self._objects: defaultdict[str, list[Operation]] = defaultdict(list)
        self._lock = threading.Lock()

    def add(self, name: str, operation: Operation) -> None:
        with self._lock:
            self._objects[name].append(operation)

    def objects(self) -> dict[str, list[Operation]]:
        with self._lock:
            return {name: list(operations) for name, operations in self._objects.items()}


def linearizable(operations: Sequence[Operation], initial: State, step: Step[State]) -> bool:
    """Whether some order of the operations explains all answers.

    Requests that are the same and have no answer are tried in the order in which they began: the earlier can do all
    that the later can. One without an answer that changes nothing is left out. So a request that was repeated a hundred
    times costs a hundred states, not 2 to the power of that.
    """
    left = sorted(operations, key=lambda one: one.began)
    answered = sum(1 << at for at, one in enumerate(left) if one.answer is not None)
    seen: set[tuple[int, State]] = set()
    todo: list[tuple[int, State]] = [(0, initial)]
    while todo:
        done, state = todo.pop()
        if done & answered == answered:
            return True
        for at in _next(left, done):
            for after in step(state, left[at]):
                if left[at].answer is None and after == state:
                    continue
                reached = (done | 1 << at, after)
                if reached not in seen:
                    seen.add(reached)
                    todo.append(reached)
    return False


def _next(left: Sequence[Operation], done: int) -> list[int]:
    """The operations that may come next: those that began before any that is not done had its answer."""
    found: list[int] = []
    first_end = math.inf
    silent: set[tuple[str, str]] = set()
    for at, one in enumerate(left):
        if one.began > first_end:
            break
        if done >> at & 1:
            continue
        first_end = min(first_end, one.ended)
        if one.answer is None:
            if (one.verb, one.argument) in silent:
                continue
            silent.add((one.verb, one.argument))
        found.append(at)
    return found


def smallest_prefix(operations: Sequence[Operation], initial: State, step: Step[State]) -> list[Operation]:
    """Of a history that cannot be explained, the operations up to the first answer after which it cannot be.

    What had no answer by then counts as without one. For people who have to find out what went wrong.
    """
    for moment in sorted(one.ended for one in operations if one.answer is not None):
        begun = [one for one in operations if one.began <= moment]
        known = [one if one.ended <= moment else one._replace(ended=math.inf, answer=None) for one in begun]
        if not linearizable(known, initial, step):
            return sorted(known, key=lambda one: one.began)
    return []
