"""Steps inside of steps as the faces show them: told by receipts, since their frames go when they have ended."""

from collections.abc import Iterable
from typing import Any, Final

from knhk.domain import event as ev
from knhk.domain.event import Event
from knhk.domain.frame import InnerFrame
from knhk.domain.identifier import to_text
from knhk.domain.paths import is_inside
from knhk.domain.run import Run
from knhk.engine.loader import Loader
from knhk.ports.journal import Journal

MOST_SHOWN: Final = 1_000
_STATES: Final[dict[type[ev.Detail], str]] = {
    ev.StepOpened: "running",
    ev.StepEntered: "running",
    ev.StepStarted: "running",
    ev.StepCaught: "running",
    ev.StepUnwinding: "running",
    ev.StepRetrying: "retrying",
    ev.StepSkipped: "skipped",
    ev.StepCompleted: "completed",
    ev.StepReused: "completed",
    ev.StepFailed: "failed",
    ev.StepCompensated: "compensated",
    ev.StepWaiting: "waiting",
    ev.TimerSet: "waiting",
}


def of_run(run: Run) -> list[dict[str, Any]]:
    """The steps of the frames that are open now; at most MOST_SHOWN."""
    shown: list[dict[str, Any]] = []
    frames: Iterable[InnerFrame] = run.inner.frames.values() if run.inner is not None else ()
    for frame in frames:
        for index, state in enumerate(frame.steps):
            if len(shown) == MOST_SHOWN:
                return shown
            shown.append(_shown(run, frame.path(index), str(state), frame.attempts[index]))
            if run.reused is not None and (reused := run.reused.get(frame.first_position + index)) is not None:
                shown[-1]["reused"] = of_reuse(reused)
    return shown


async def of_receipts(run: Run, journal: Journal, loader: Loader) -> list[dict[str, Any]]:
    """All steps inside that anything happened to, in the order in which it began; the last MOST_SHOWN."""
    if run.inner is None:
        return []  # It never had any.
    seqs: dict[str, int] = {}
    found: dict[str, dict[str, Any]] = {}
    for sealed in await journal.receipts(run.workflow_id):
        receipt = sealed.receipt()
        event: Event = receipt.event()
        state = _STATES.get(type(event.detail))
        if state is None or not is_inside(event.step):
            continue
        shown = found.setdefault(event.step, _shown(run, event.step, state, event.attempt))
        shown["state"] = state
        shown["attempts"] = max(shown["attempts"], event.attempt)
        shown.pop("failure", None)
        if isinstance(event.detail, ev.StepReused):
            shown["reused"] = of_reuse(event.detail)
        failure = getattr(event.detail, "failure", None)
        if failure is not None:
            shown["failure"] = {"code": failure.code, "message": failure.message, "step": failure.step}
        if state == "completed":
            seqs[event.step] = receipt.seq
    if run.ended:
        for shown in found.values():
            if shown["state"] in ("running", "retrying", "waiting"):
                shown["state"] = "cancelled"
    told = list(found.values())[-MOST_SHOWN:]
    for shown in told:
        if shown["state"] == "completed" and not run.erased:
            shown["output"] = await loader.output_at(run, seqs[shown["name"]])
    return told


def of_reuse(reused: ev.StepReused) -> dict[str, Any]:
    """Where a step that was not run has from what it gives."""
    return {"workflow_id": to_text(reused.source), "seq": reused.seq, "why": reused.why}


def _shown(run: Run, path: str, state: str, attempts: int) -> dict[str, Any]:
    return {"name": path, "action": run.plan.action_of(path), "state": state, "attempts": attempts}
