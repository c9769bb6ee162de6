"""What one run promises to whoever submits, signals, cancels or looks at it, as an object with operations.

A run ends by itself, at any moment once it may: a run behind a gate, not before it has its signal.

    submit KEY       -> Submitted: always the same run; the first makes it
    signal ID        -> Done: it was taken in, by this request or an earlier one with the id; Ended: too late
    cancel           -> Done: the run has ended as cancelled; Ended: it had ended before
    status           -> Seen: never earlier than what was seen or answered before
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from tests.chaos.linearizability import Operation

OPEN: Final = ("pending", "running", "paused")
UNNAMED: Final = "?"
"""The run of a submission whose answer nobody got."""


class Submitted(NamedTuple):
    """`new` unless the key was known."""

    workflow_id: str
    new: bool


class Done(NamedTuple):
    """`new` unless it was done before."""

    new: bool = True


class Ended(NamedTuple):
    """Refused, because the run has ended."""


class Seen(NamedTuple):
    """What a status showed: also how many receipts, and whether the run still waits at its gate."""

    state: str
    receipts: int
    waits: bool


class Missing(NamedTuple):
    """There is no such run."""


class State(NamedTuple):
    """`end` is empty while the run is under way, and "over" once it is known to have ended by itself, but not how."""

    gated: bool
    run: str = ""
    signals: frozenset[str] = frozenset()
    receipts: int = 0
    end: str = ""


def step(state: State, operation: Operation) -> Iterator[State]:
    """What the run may be after an operation; of one without an answer, after it has changed something."""
    answer = operation.answer
    if operation.verb == "submit":
        yield from _submit(state, answer)
    elif isinstance(answer, Missing):
        if not state.run:
            yield state
    elif not state.run:
        return
    elif operation.verb == "signal":
        yield from _signal(state, operation.argument, answer)
    elif operation.verb == "cancel":
        yield from _cancel(state, answer)
    elif operation.verb == "status":
        if answer is not None:
            yield from _status(state, answer)
    else:
        raise ValueError(operation.verb)


def _submit(state: State, answer: Submitted | None) -> Iterator[State]:
    if answer is None:
        if not state.run:
            yield state._replace(run=UNNAMED)
    elif not state.run or (not answer.new and state.run in (UNNAMED, answer.workflow_id)):
        # A first answer of "known already" is of a node that had to repeat the request itself.
        yield state._replace(run=answer.workflow_id)


def _signal(state: State, signal: str, answer: Done | Ended | None) -> Iterator[State]:
    known = signal in state.signals
    if isinstance(answer, Ended):
        if not known:
            yield from _over(state)
    elif known:
        if answer is not None and not answer.new:
            yield state
    elif not state.end:
        yield state._replace(signals=state.signals | {signal})


def _cancel(state: State, answer: Done | Ended | None) -> Iterator[State]:
    if isinstance(answer, Ended):
        yield from _over(state)
    elif not state.end:
        yield state._replace(end="cancelled")


def _status(state: State, answer: Seen) -> Iterator[State]:
    if answer.receipts < state.receipts or (answer.waits and state.signals):
        return
    seen = state._replace(receipts=answer.receipts)
    if answer.state in OPEN:
        if not state.end:
            yield seen
    elif state.end == answer.state:
        yield seen
    elif answer.state != "cancelled" and (state.end == "over" or (not state.end and _may_end(state))):
        yield seen._replace(end=answer.state)


def _over(state: State) -> Iterator[State]:
    """Ended, if it can have."""
    if state.end:
        yield state
    elif _may_end(state):
        yield state._replace(end="over")


def _may_end(state: State) -> bool:
    return not state.gated or bool(state.signals)
