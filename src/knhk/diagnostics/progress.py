"""Notices what stands still although it has work: commits that a disk never answers, projections that do not follow.

Neither is an error that anybody would raise, so nothing but the absence of progress can tell. Also watches the room on
the disk before it is needed. Looked at once a second.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
from prometheus_client.core import GaugeMetricFamily, Metric

from knhk.observability.readings import OK, WARNING
from knhk.ports.environment import Clock

PATIENCE_S: Final = 10.0
_EVERY_S: Final = 1.0
_MIB: Final = 20


class Moment(msgspec.Struct, frozen=True):
    """How far the parts are: group commits made, whether one is under way, and blocks cut and projected."""

    commits: int
    committing: bool
    height: int
    projected: int
    free_bytes: int


class _Stage:
    """Something that has to move while it has work. `since_ns` is when it last moved or had nothing to do."""

    def __init__(self) -> None:
        self._at, self._since_ns = -1, 0

    def look(self, at: int, has_work: bool, now_ns: int) -> float:
        """For how many seconds it has stood still with work to do."""
        if not has_work or at != self._at:
            self._at, self._since_ns = at, now_ns
        return max(0, now_ns - self._since_ns) / 1e9


class Progress:
    """A `ports.duty.Duty`. `look` tells how far the parts are; below `least_free_bytes` the disk is nearly full."""

    room: Final = "persistence"

    def __init__(self, clock: Clock, look: Callable[[], Moment], least_free_bytes: int) -> None:
        self._clock, self._look, self._least_free_bytes = clock, look, least_free_bytes
        self._commits, self._projections = _Stage(), _Stage()
        self._task: asyncio.Task[None] | None = None
        self._text = OK
        self.stuck: str | None = None
        """Why nothing can be recorded, though no error says so; None if it can."""

    async def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._work(), name="progress")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def health(self) -> str:
        """What stood still or is nearly used up when last looked at."""
        return self._text

    def families(self) -> list[Metric]:
        """For the metrics."""
        text = "1 if a commit has been under way for so long that the disk seems not to answer."
        return [GaugeMetricFamily("knhk_commits_stuck", text, float(self.stuck is not None))]

    def check(self) -> None:
        """Look once."""
        now, now_ns = self._look(), self._clock.now_ns()
        commit_s = self._commits.look(now.commits, now.committing, now_ns)
        behind = now.height - now.projected
        projection_s = self._projections.look(now.projected, behind > 0, now_ns)
        self.stuck = None
        if commit_s >= PATIENCE_S:
            self.stuck = self._text = f"a commit has been under way for {commit_s:.0f} s: the disk does not answer"
        elif projection_s >= PATIENCE_S:
            self._text = (
                f"{WARNING}lists and metrics have been {behind} blocks behind for {projection_s:.0f} s without moving"
            )
        elif now.free_bytes < self._least_free_bytes:
            self._text = f"{WARNING}the disk is nearly full: {now.free_bytes >> _MIB} MiB are free"
        else:
            self._text = OK

    async def _work(self) -> None:
        while True:
            self.check()
            await self._clock.sleep(_EVERY_S)
