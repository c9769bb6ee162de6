"""Restore drills by themselves: now and then, in a process of their own, so that runs do not feel them.

What a drill measures is shown as metrics and becomes a receipt on the record `recovery` / `drills`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from knhk.domain.errors import KnhkError, StorageUnavailable
from knhk.domain.event import RecoveryDrilled
from knhk.domain.identifier import to_text
from knhk.observability.logs import get
from knhk.persistence.verification import UNDECODABLE
from knhk.ports.environment import Clock

RECORD: Final = "drills"
_OK: Final = "ok"
_MOST_OUTPUT_BYTES: Final = 1 << 20

Propose = Callable[[RecoveryDrilled], Awaitable[int]]
"""Has a drill written down; the id of the record."""


class Outcome(msgspec.Struct):
    """What `knhk recover drill --output json` prints."""

    ok: bool
    source: str
    rto_seconds: float
    rpo_seconds: float
    receipts: int
    workflows: int
    folded: int
    problems: list[str]


class DrillDuty:
    """Implements ports.duty.Duty. `command` runs one drill and prints its outcome as JSON."""

    room = "recovery"

    def __init__(self, command: Sequence[str], propose: Propose, clock: Clock, *, interval_ns: int) -> None:
        self._command, self._propose, self._clock, self._interval_ns = command, propose, clock, interval_ns
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._log = get("knhk.recovery")
        self._failure = ""
        self._last_at_ns = 0
        self.last: Outcome | None = None
        self.drills_total = self.failures_total = 0

    async def start(self) -> None:
        """Begin; the first drill is one interval away. An interval of 0 means on request alone."""
        if self._interval_ns:
            self._task = asyncio.create_task(self._work(), name="drills")

    async def stop(self) -> None:
        """End, and call off a drill that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    def health(self) -> str:
        """Whether the last drill succeeded."""
        return f"the last restore drill failed: {self._failure}" if self._failure else _OK

    def figures(self) -> dict[str, float]:
        """For the metrics."""
        found = {"drills_total": float(self.drills_total), "drill_failures_total": float(self.failures_total)}
        if self.last is not None:
            found["drill_rto_seconds"] = self.last.rto_seconds
            found["drill_rpo_seconds"] = self.last.rpo_seconds
            found["drill_ok"] = float(self.last.ok)
            found["drill_age_seconds"] = (self._clock.now_ns() - self._last_at_ns) / 1e9
        return found

    async def drill(self) -> dict[str, Any]:
        """Drill now; the outcome with the id of the record that it was written to. Raises KnhkError."""
        async with self._turn:
            outcome = await self._run()
        self.last, self._last_at_ns = outcome, self._clock.now_ns()
        self.drills_total += 1
        self.failures_total += not outcome.ok
        self._failure = "; ".join(outcome.problems[:3])
        detail = RecoveryDrilled(
            RECORD,
            outcome.source,
            outcome.ok,
            round(outcome.rto_seconds * 1e9),
            round(outcome.rpo_seconds * 1e9),
            outcome.receipts,
            outcome.workflows,
            outcome.folded,
            tuple(outcome.problems[:10]),
        )
        record = to_text(await self._propose(detail))
        shown = {**msgspec.to_builtins(outcome), "record": record}
        (self._log.info if outcome.ok else self._log.error)("restore drill", **shown)
        return shown

    async def _run(self) -> Outcome:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, said = await self._process.communicate()
        try:
            return msgspec.json.decode(out[:_MOST_OUTPUT_BYTES], type=Outcome)
        except UNDECODABLE as error:
            text = said.decode(errors="replace").strip()[-500:]
            raise StorageUnavailable(f"the drill ended with {self._process.returncode}: {text}") from error

    async def _work(self) -> None:
        while True:
            await self._clock.sleep(self._interval_ns / 1e9)
            try:
                await self.drill()
            except Exception as error:  # the next one may succeed, and health must tell of it
                self.failures_total += 1
                self._failure = error.message if isinstance(error, KnhkError) else f"{type(error).__name__}: {error}"
                self._log.error("a restore drill failed", reason=self._failure)
