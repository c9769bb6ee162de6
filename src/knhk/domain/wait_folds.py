"""Waiting for others, and what came of it, taken into the state of a run."""

from knhk.domain import event as ev
from knhk.domain.event import Event
from knhk.domain.frame import StepState
from knhk.domain.run_state import Run
from knhk.domain.step_folds import attempt_ended
from knhk.domain.waits import ChildResult, Signal, Verdict, Waiting, Waits


def waiting(run: Run, event: Event, detail: ev.StepWaiting) -> None:
    """A step waits for what somebody else must do."""
    frame, index = run.locate(event.step)
    position = attempt_ended(run, frame, index, event, StepState.WAITING)
    frame.output_seqs[index] = -1
    if detail.until_ns:
        run.set_timer(position, detail.until_ns, event.at_ns)
    what = Waiting(
        detail.what,  # type: ignore[arg-type]  # one of them, or a later version's, which then nothing fits
        event.at_ns,
        detail.until_ns,
        detail.event,
        detail.correlate,
        detail.approvers,
        detail.required,
        detail.on_reject,
        detail.message,
        detail.child,
    )
    waits_of(run).begin(position, what)


def signal_received(run: Run, event: Event, detail: ev.SignalReceived) -> None:
    """A signal came."""
    signal = Signal(run.seq, detail.event, detail.correlate, detail.id, event.at_ns, event.actor)
    waits_of(run).receive(signal)


def approval_given(run: Run, event: Event, detail: ev.ApprovalGiven) -> None:
    """Somebody approved or rejected."""
    frame, index = run.locate(event.step)
    verdict = Verdict(detail.approver, detail.approved, detail.comment, event.at_ns)
    waits_of(run).judge(frame.first_position + index, verdict)


def child_ended(run: Run, _event: Event, detail: ev.ChildEnded) -> None:
    """A child workflow has ended."""
    waits_of(run).child_ended(ChildResult(run.seq, detail.child, detail.state, detail.failure))


def settled(run: Run, _event: Event, _detail: ev.Settled) -> None:
    """Nothing is left to follow from the run's end."""
    run.settled = True


def waits_of(run: Run) -> Waits:
    """What the run's steps wait for; made when it is first needed, as most runs never wait for anybody."""
    if run.waits is None:
        run.waits = Waits()
    return run.waits
