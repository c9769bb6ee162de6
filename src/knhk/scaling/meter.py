"""What this process has to do: a fold of committed events, and the process's own CPU and memory."""

import os
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from knhk.domain.event import Detail, Event, Started, StepCompleted, StepFailed
from knhk.domain.histogram import SHORT_S, quantile
from knhk.domain.summary import Summary
from knhk.observability.readings import memory_limit_bytes
from knhk.ports.environment import Clock
from knhk.scaling.forecast import Mean
from knhk.scaling.load import Load

WAIT_SHARE: Final = 0.99
WINDOW_MINUTES: Final = 5
_BOUNDS_S: Final = (*SHORT_S, 30.0, 60.0, 300.0, 1_800.0, 3_600.0)
_MINUTE_NS: Final = 60_000_000_000
_MOST_DEFINITIONS: Final = 1_000
_FADES_AT: Final = 1_000.0
_SHORTEST_S: Final = 0.05
_CONTROL_GROUP: Final = Path("/sys/fs/cgroup")


class Places(NamedTuple):
    """Runs and steps of a process: how many are under way or wait for a place, and how many places there are."""

    runs: int
    most_runs: int
    steps: int
    most_steps: int


class _Minute(NamedTuple):
    number: int
    counts: list[int]


class Meter:
    """A `ports.fold.Fold`, and what can be asked about it. `processor` may be used in another thread."""

    kinds: Final = frozenset[type[Detail]]({StepCompleted, StepFailed, Started})

    def __init__(self, clock: Clock, replica: str, places: Callable[[], Places]) -> None:
        self._clock, self._replica, self._places = clock, replica, places
        self.processor = Processor(clock)
        self.means: dict[str, Mean] = {}
        """What the runs of each definition take."""
        self._work_s = 0.0
        self._minutes: deque[_Minute] = deque(maxlen=WINDOW_MINUTES + 1)

    def take(self, summary: Summary, event: Event, _action: str) -> None:
        """Count the work of steps, and how long runs and steps waited for a place.

        A run that waits for its limits (concurrency, rate) would wait with more replicas too.
        """
        detail = event.detail
        if isinstance(detail, StepCompleted | StepFailed):
            if detail.started_at_ns:
                worked_s = max(0, event.at_ns - detail.started_at_ns) / 1e9
                self._work_s += worked_s
                self._mean(summary.definition).work_s += worked_s
                self._waited(event.at_ns, detail.queued_ns)
        elif isinstance(detail, Started):
            self._mean(summary.definition).runs += 1
            if not (summary.concurrency_key or summary.rate_key):
                self._waited(event.at_ns, event.at_ns - summary.submitted_at_ns)

    def load(self, cpu: "Cpu") -> Load:
        """The load of this process just now; `cpu` is what `Processor` found."""
        places, limit = self._places(), memory_limit_bytes()
        return Load(
            replica=self._replica,
            cpu=cpu.share,
            memory=cpu.memory_bytes / limit if limit else None,
            runs=places.runs / places.most_runs,
            steps=places.steps / places.most_steps,
            wait_s=self._wait_s(),
            cores=cpu.cores,
            cpu_s=cpu.total_s,
            work_s=self._work_s,
        )

    def _mean(self, definition: str) -> Mean:
        found = self.means.get(definition)
        if found is None:
            found = Mean()
            if len(self.means) < _MOST_DEFINITIONS:
                self.means[definition] = found
        elif found.runs > _FADES_AT:
            found.runs, found.work_s = found.runs / 2, found.work_s / 2
        return found

    def _waited(self, at_ns: int, waited_ns: int) -> None:
        number = at_ns // _MINUTE_NS
        if not self._minutes or self._minutes[-1].number != number:
            self._minutes.append(_Minute(number, [0] * (len(_BOUNDS_S) + 1)))
        self._minutes[-1].counts[bisect_left(_BOUNDS_S, waited_ns / 1e9)] += 1

    def _wait_s(self) -> float:
        oldest = self._clock.now_ns() // _MINUTE_NS - WINDOW_MINUTES
        recent = [one.counts for one in self._minutes if one.number >= oldest]
        summed = [sum(column) for column in zip(*recent, strict=True)]
        return (quantile(WAIT_SHARE, _BOUNDS_S, summed) if summed else None) or 0.0


class Cpu(NamedTuple):
    """What the process and its children use. `share` and `cores` are since the last look, None at the first."""

    share: float | None
    cores: float | None
    total_s: float
    memory_bytes: int


class Processor:
    """Measures the process. Not for use from two threads at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._process = clock, psutil.Process()
        self._main = os.getpid()  # the thread of the event loop: on Linux the main thread has the process's id
        self._at_ns, self._seconds, self._loop_s, self._total_s = 0, 0.0, 0.0, 0.0
        self._last = Cpu(None, None, 0.0, 0)
        self.look()

    def look(self) -> Cpu:
        """Measure; reads /proc, which takes some milliseconds. What was measured a moment ago is given again."""
        now_ns = self._clock.now_ns()
        elapsed_s = (now_ns - self._at_ns) / 1e9
        if 0 <= elapsed_s < _SHORTEST_S:
            return self._last
        seconds, memory = self._of_all()
        loop_s = next((sum(one[1:3]) for one in self._process.threads() if one.id == self._main), self._loop_s)
        grown_s, first = max(0.0, seconds - self._seconds), self._at_ns == 0
        self._total_s += grown_s
        share = cores = None
        if not first and elapsed_s > 0:
            cores = grown_s / elapsed_s
            share = max(cores / processors(), max(0.0, loop_s - self._loop_s) / elapsed_s)
        self._at_ns, self._seconds, self._loop_s = now_ns, seconds, loop_s
        self._last = Cpu(share, cores, self._total_s, memory)
        return self._last

    def _of_all(self) -> tuple[float, int]:
        seconds, memory = 0.0, 0
        for one in (self._process, *self._process.children(recursive=True)):
            try:
                with one.oneshot():
                    seconds += sum(one.cpu_times()[:4])  # also of children that have ended
                    memory += one.memory_info().rss
            except psutil.Error:  # it has just ended
                continue
        return seconds, memory


def processors(control_group: Path = _CONTROL_GROUP) -> float:
    """How many processors may be used: those that are allowed, or the container's quota (cgroup v2 cpu.max)."""
    allowed = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (control_group / "cpu.max").read_text().split()
        return min(allowed, int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup v2, or `max`
        return allowed
