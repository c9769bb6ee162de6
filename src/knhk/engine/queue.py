"""Runs that wait for a slot, and which of them is next: fair between departments, by priority and age within each.

The department with the fewest active runs is next, of equal ones that whose turn was longest ago (max-min fairness):
none can starve another, however much it submits and whatever priority it claims. Runs with the same limits share a
*lane*; one whose first run may not start steps aside until its key is let go or its time has come, and holds up nobody.

Nothing here is the truth: which runs wait, their age (their id) and their priority are in their receipts.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Final

from knhk.engine.holders import Holders, Obstacle
from knhk.engine.live import LiveRun

Lane = tuple[str, str, str]
"""Department, concurrency key, rate key."""
_Place = tuple[int, int]
_NOBODY: Final[frozenset[int]] = frozenset()


class Active(dict[int, LiveRun]):
    """The runs that have a slot, by id, and which of them belong to which department."""

    def __init__(self) -> None:
        super().__init__()
        self._departments: dict[str, set[int]] = {}

    def __setitem__(self, workflow_id: int, live: LiveRun) -> None:
        super().__setitem__(workflow_id, live)
        self._departments.setdefault(live.run.plan.department, set()).add(workflow_id)

    def remove(self, live: LiveRun) -> None:
        """Take a run's slot away, if it has one."""
        workflow_id, department = live.run.workflow_id, live.run.plan.department
        if super().pop(workflow_id, None) is not None:
            ids = self._departments[department]
            ids.discard(workflow_id)
            if not ids:
                del self._departments[department]

    def of(self, department: str) -> int:
        """How many runs of a department have a slot."""
        return len(self._departments.get(department, _NOBODY))


class Turns:
    """Whose turn it is among departments: the least busy one, of equals the one that has waited longest."""

    def __init__(self, busy: Callable[[str], int]) -> None:
        self._busy = busy
        self._served: dict[str, int] = {}
        self._turn = 0

    def next(self, departments: Mapping[str, object]) -> str:
        """One of the departments, of which there must be one."""
        if len(departments) == 1:
            return next(iter(departments))
        return min(departments, key=lambda one: (self._busy(one), self._served.get(one, 0), one))

    def serve(self, department: str, others: Mapping[str, object]) -> None:
        """A department has had its turn; `others` are those that wait, the only ones whose turns must be remembered."""
        self._turn += 1
        self._served[department] = self._turn
        if len(self._served) > 2 * len(others) + 64:
            self._served = {one: at for one, at in self._served.items() if one in others}


class Queue:
    """The runs of one partition that wait for a slot."""

    def __init__(self, holders: Holders, active: Active) -> None:
        self._holders = holders
        self._runs: dict[int, LiveRun] = {}
        self._waiting: Counter[str] = Counter()
        self._lanes: dict[Lane, list[_Place]] = {}
        self._ready: dict[str, list[tuple[_Place, Lane]]] = {}
        self._aside: dict[Lane, Obstacle] = {}
        self._by_key: dict[str, set[Lane]] = {}
        self._opening: list[tuple[int, Lane]] = []
        self._turns = Turns(active.of)

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[int]:
        return iter(self._runs)

    def __contains__(self, workflow_id: object) -> bool:
        return workflow_id in self._runs

    def get(self, workflow_id: int) -> LiveRun | None:
        """The run, if it waits."""
        return self._runs.get(workflow_id)

    def of(self, department: str) -> int:
        """How many runs of a department wait."""
        return self._waiting[department]

    @property
    def departments(self) -> int:
        """How many departments wait."""
        return len(self._waiting)

    def add(self, live: LiveRun) -> None:
        """Let a run wait."""
        workflow_id = live.run.workflow_id
        if workflow_id in self._runs:
            return
        self._runs[workflow_id] = live
        lane, place = lane_of(live), _place(live)
        self._waiting[lane[0]] += 1
        places = self._lanes.setdefault(lane, [])
        heappush(places, place)
        if places[0] == place and lane not in self._aside:
            self._offer(lane, place)

    def remove(self, workflow_id: int) -> None:
        """A run waits no more, if it did."""
        live = self._runs.pop(workflow_id, None)
        if live is not None:
            department = live.run.plan.department
            self._waiting[department] -= 1
            if not self._waiting[department]:
                del self._waiting[department]
            self._first(lane_of(live))  # an empty lane is nothing to keep

    def take(self, now_ns: int) -> tuple[LiveRun, Obstacle | None] | None:
        """The next run to start; with an obstacle, one that must end because it does not want to wait for it."""
        while self._opening and self._opening[0][0] <= now_ns:
            self._come_back(heappop(self._opening)[1])
        while self._ready:
            department = self._turns.next(self._ready)
            offers = self._ready[department]
            place, lane = heappop(offers)
            if not offers:
                del self._ready[department]
            first = self._first(lane)
            if first is None or lane in self._aside:
                continue
            if first != place:
                if first > place:
                    self._offer(lane, first)  # The run that was offered has gone, and this one has come to the front.
                continue
            live = self._runs[first[1]]
            obstacle = self._holders.obstacle(live, now_ns)
            if obstacle is not None and not refuses(live, obstacle):
                self._step_aside(lane, obstacle)
                continue
            self.remove(first[1])
            following = self._first(lane)
            if following is not None:
                self._offer(lane, following)
            if obstacle is None:
                self._turns.serve(department, self._waiting)
            return live, obstacle
        return None

    def opens_at_ns(self) -> int:
        """When the next lane that waits for a time comes back, 0 if there is none."""
        return self._opening[0][0] if self._opening else 0

    def let_go(self, key: str) -> None:
        """A holder of a key has ended: the lanes that waited for that come back."""
        for lane in self._by_key.pop(key, ()):
            self._come_back(lane)

    def loaded(self) -> None:
        """The holders are known now."""
        for lane, obstacle in tuple(self._aside.items()):
            if obstacle.kind == "loading":
                self._come_back(lane)

    def rank(self, live: LiveRun) -> int:
        """The place of a run among those of its department that wait, from 1."""
        department, place = live.run.plan.department, _place(live)
        before = [one for one in self._runs.values() if one.run.plan.department == department and _place(one) < place]
        return len(before) + 1

    def ranks(self) -> dict[int, int]:
        """The place of each run among those of its department that wait, from 1."""
        ranks: dict[int, int] = {}
        seen: Counter[str] = Counter()
        for live in sorted(self._runs.values(), key=_place):
            department = live.run.plan.department
            seen[department] += 1
            ranks[live.run.workflow_id] = seen[department]
        return ranks

    def _first(self, lane: Lane) -> _Place | None:
        places = self._lanes.get(lane)
        if places is None:
            return None
        while places and places[0][1] not in self._runs:
            heappop(places)
        if not places:
            del self._lanes[lane]
            obstacle = self._aside.pop(lane, None)
            if obstacle is not None and obstacle.kind == "concurrency":
                self._by_key.get(obstacle.key, set()).discard(lane)
            return None
        return places[0]

    def _offer(self, lane: Lane, place: _Place) -> None:
        heappush(self._ready.setdefault(lane[0], []), (place, lane))

    def _step_aside(self, lane: Lane, obstacle: Obstacle) -> None:
        self._aside[lane] = obstacle
        if obstacle.kind == "concurrency":
            self._by_key.setdefault(obstacle.key, set()).add(lane)
        elif obstacle.kind == "rate_limit":
            heappush(self._opening, (obstacle.until_ns, lane))

    def _come_back(self, lane: Lane) -> None:
        self._aside.pop(lane, None)
        first = self._first(lane)
        if first is not None:
            self._offer(lane, first)


def lane_of(live: LiveRun) -> Lane:
    """The lane in which a run waits."""
    submitted = live.run.submitted
    assert submitted is not None
    return live.run.plan.department, submitted.concurrency_key, submitted.rate_key


def _place(live: LiveRun) -> _Place:
    submitted = live.run.submitted
    assert submitted is not None
    return -submitted.priority, live.run.workflow_id


def refuses(live: LiveRun, obstacle: Obstacle) -> bool:
    """Whether a run would rather end than wait for this."""
    concurrency = live.run.plan.limits.concurrency
    return obstacle.kind == "concurrency" and concurrency is not None and concurrency.on_limit != "queue"
