"""Erasure of a run's or a department's inputs and outputs: the rows, and the keys that copies of them need.

The receipts stay, each run gets a `payload.erased`, and everything still verifies. The erasure of a department is noted
in the key ring before it begins, and goes on after a crash until it is done.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from knhk.domain.errors import IllegalTransition, KnhkError
from knhk.domain.identifier import at_ms, parse, to_text
from knhk.engine.control import Filter
from knhk.engine.service import Engine
from knhk.observability.logs import get
from knhk.observability.readings import WARNING
from knhk.ports.environment import Clock
from knhk.security.key_ring import DepartmentErasure, KeyRing

_PAGE: Final = 1_000
_AT_ONCE: Final = 64
_ENDED: Final = frozenset({"completed", "failed", "cancelled", "timed_out"})
_NAMED: Final = 5
_LOOK_S: Final = 0.01
_RETRY_S: Final = 5.0
_MS: Final = 1_000_000


class Erasure:
    """Implements ports.duty.Duty: finishes what a crash interrupted."""

    room = "persistence"

    def __init__(
        self, engine: Engine, clock: Clock, ring: KeyRing | None, note_ring: Callable[[], Awaitable[None]]
    ) -> None:
        """`ring` is that of data which are encrypted; `note_ring` tells the store of its newest generation."""
        self._engine, self._clock, self._ring, self._note_ring = engine, clock, ring, note_ring
        self.runs = engine.control
        """What lists and erases runs: in a cluster those of all partitions."""
        self.projected: Callable[[], Awaitable[None]] = self._projected
        """Waits until the lists show all that is committed."""
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._failure = ""

    async def start(self) -> None:
        """Go on with departments whose erasure had begun."""
        if self._ring is not None and self._ring.department_erasures:
            self._task = asyncio.create_task(self._finish_begun(), name="erasure")

    async def stop(self) -> None:
        """End; what is left goes on at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def health(self) -> str:
        """Whether a begun erasure goes on."""
        return f"{WARNING}an erasure waits: {self._failure}" if self._failure else "ok"

    async def department(self, name: str, *, actor: str, reason: str = "") -> int:
        """Erase all ended runs of a department; how many. Raises IllegalTransition while some have not ended."""
        async with self._turn:
            return await self._department(name, actor, reason)

    async def _department(self, name: str, actor: str, reason: str) -> int:
        if self._ring is None:
            ended, living = await self._runs(name, self._clock.now_ns() // _MS)
            _refuse_living(name, living)
            await self._erase(ended, actor, reason)
            return len(ended)
        begun = self._ring.begin_department_erasure(name, actor, reason, self._clock.now_ns())
        await self._note_ring()
        ended, living = await self._runs(name, begun.at_ns // _MS)
        if living:  # then none of them was erased either: it had not been looked at before
            self._ring.end_department_erasure(begun, destroy=False)
            _refuse_living(name, living)
        await self._erase(ended, actor, reason)
        self._ring.end_department_erasure(begun, destroy=True)
        return len(ended)

    async def _runs(self, name: str, until_ms: int) -> tuple[list[int], list[str]]:
        """The department's runs that were submitted by then: those that ended and keep payloads, and the others."""
        await self.projected()
        ended, living, before = list[int](), list[str](), None
        while True:
            rows, before = await self.runs.listing(Filter(department=name), before=before, limit=_PAGE)
            for row in rows:
                number = parse(row["workflow_id"])
                if at_ms(number) > until_ms or row["department"] != name:
                    continue
                if row["state"] not in _ENDED:
                    living.append(row["workflow_id"])
                elif not row["erased"]:
                    ended.append(number)
            if before is None:
                return ended, living

    async def _projected(self) -> None:
        height = self._engine.committer.height
        while self._engine.projector.written < height and self._engine.projector.failed is None:
            await self._clock.sleep(_LOOK_S)

    async def _erase(self, runs: list[int], actor: str, reason: str) -> None:
        """Erase them all, and go on if some cannot be: those are named, and erasing again erases them."""
        failed: dict[int, KnhkError] = {}

        async def one(run: int) -> None:
            try:
                await self.runs.erase(run, actor=actor, reason=reason)
            except KnhkError as error:
                failed[run] = error

        for at in range(0, len(runs), _AT_ONCE):
            await asyncio.gather(*map(one, runs[at : at + _AT_ONCE]))
        if failed:
            named = ", ".join(f"{to_text(run)}: {error.message}" for run, error in list(failed.items())[:_NAMED])
            first = next(iter(failed.values()))
            raise type(first)(
                f"{len(runs) - len(failed)} of {len(runs)} workflow(s) were erased; not {named}",
                retry_after_s=first.retry_after_s,
            )

    async def _finish_begun(self) -> None:
        assert self._ring is not None
        for begun in self._ring.department_erasures:
            while not await self._finished(begun):
                await self._clock.sleep(_RETRY_S)

    async def _finished(self, begun: DepartmentErasure) -> bool:
        try:
            erased = await self.department(begun.department, actor=begun.actor, reason=begun.reason)
        except IllegalTransition:
            return True  # it had only begun, and nobody was told that it was done
        except KnhkError as error:
            self._failure = f"{begun.department}: {error.message}"
            return False
        self._failure = ""
        get("knhk.protection").info("erased a department", department=begun.department, workflows=erased)
        return True


def _refuse_living(name: str, living: list[str]) -> None:
    if living:
        raise IllegalTransition(
            f"{len(living)} workflow(s) of {name!r} have not ended: {', '.join(living[:_NAMED])}",
            hint="Cancel them, or wait for their end, and erase again.",
        )
