"""The checker of histories, on histories made by hand, on all small ones against trying every order, and on those of an
object that is linearizable, before and after something in them was made untrue."""

import math
from itertools import permutations
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.linearizability import Operation, linearizable, smallest_prefix
from tests.chaos.specification import Done, Ended, Missing, Seen, State, Submitted, step

GATED: Final = State(gated=True)
BEHIND: Final = Seen("running", 3, waits=True)
NEW: Final = Submitted("wf-1", new=True)
KNOWN: Final = Submitted("wf-1", new=False)


def history(*rows: tuple[str, float, float, Any]) -> list[Operation]:
    """Operations from `verb` or `verb:argument`, beginning, end and answer."""
    made = []
    for words, began, ended, answer in rows:
        verb, _, argument = words.partition(":")
        made.append(Operation(verb, argument, began, ended, answer))
    return made


GOOD: Final = {
    "nothing at all": [],
    "one after the other": [
        ("submit", 0, 1, NEW),
        ("status", 2, 3, BEHIND),
        ("signal:a", 4, 5, Done()),
        ("signal:a", 6, 7, Done(new=False)),
        ("status", 8, 9, Seen("completed", 6, waits=False)),
        ("cancel", 10, 11, Ended()),
    ],
    "the repetition is answered first": [("submit", 0, 9, NEW), ("submit", 1, 2, KNOWN)],
    "a status at the same time as the signal shows either": [
        ("submit", 0, 1, NEW),
        ("signal:a", 2, 9, Done()),
        ("status", 3, 4, Seen("running", 4, waits=False)),
        ("status", 3, 8, BEHIND),
    ],
    "a submission without an answer was done after all": [
        ("submit", 0, math.inf, None),
        ("submit", 5, 6, KNOWN),
        ("status", 7, 8, BEHIND),
    ],
    "a submission without an answer was never done": [("submit", 0, math.inf, None), ("submit", 5, 6, NEW)],
    "a cancellation without an answer arrives late": [
        ("submit", 0, 1, NEW),
        ("cancel", 2, math.inf, None),
        ("status", 50, 51, BEHIND),
        ("status", 60, 61, Seen("cancelled", 4, waits=False)),
    ],
    "a signal without an answer opened the gate": [
        ("submit", 0, 1, NEW),
        ("signal:a", 2, math.inf, None),
        ("status", 3, 4, Seen("completed", 6, waits=False)),
    ],
    "the node repeated what it had done": [("submit", 0, 1, KNOWN), ("signal:a", 2, 3, Done(new=False))],
    "the run ended by itself before the second signal": [
        ("submit", 0, 1, NEW),
        ("signal:a", 2, 3, Done()),
        ("signal:b", 4, 5, Ended()),
        ("status", 6, 7, Seen("failed", 6, waits=False)),
    ],
}
BAD: Final = {
    "one key, two runs": [("submit", 0, 1, NEW), ("submit", 2, 3, Submitted("wf-2", new=False))],
    "made twice": [("submit", 0, 5, NEW), ("submit", 1, 4, NEW)],
    "lost after it was acknowledged": [("submit", 0, 1, NEW), ("status", 2, 3, Missing())],
    "seen before anybody submitted it": [("status", 0, 1, BEHIND), ("submit", 2, 3, NEW)],
    "earlier than an acknowledged signal": [
        ("submit", 0, 1, NEW),
        ("signal:a", 2, 3, Done()),
        ("status", 4, 5, BEHIND),
    ],
    "backwards from one status to the next": [
        ("submit", 0, 1, NEW),
        ("signal:a", 2, 9, Done()),
        ("status", 3, 4, Seen("running", 5, waits=False)),
        ("status", 5, 6, Seen("running", 4, waits=False)),
    ],
    "alive after its end": [
        ("submit", 0, 1, NEW),
        ("signal:a", 2, 3, Done()),
        ("status", 4, 5, Seen("completed", 6, waits=False)),
        ("status", 6, 7, Seen("running", 6, waits=False)),
    ],
    "two ends": [
        ("submit", 0, 1, NEW),
        ("signal:a", 2, 3, Done()),
        ("cancel", 4, 5, Done()),
        ("status", 6, 7, Seen("completed", 6, waits=False)),
    ],
    "cancelled twice": [("submit", 0, 1, NEW), ("cancel", 2, 9, Done()), ("cancel", 3, 8, Done())],
    "through the gate without a signal": [("submit", 0, 1, NEW), ("status", 2, 3, Seen("completed", 6, waits=False))],
    "the signal came after what it caused": [
        ("submit", 0, 1, NEW),
        ("status", 2, 3, Seen("completed", 6, waits=False)),
        ("signal:a", 4, math.inf, None),
    ],
    "delivered twice": [("submit", 0, 1, NEW), ("signal:a", 2, 8, Done()), ("signal:a", 3, 9, Done())],
    "refused although it was delivered": [
        ("submit", 0, 1, NEW),
        ("signal:a", 2, 3, Done()),
        ("signal:a", 4, 5, Ended()),
    ],
    "cancelled by nobody": [("submit", 0, 1, NEW), ("status", 2, 3, Seen("cancelled", 4, waits=False))],
    "taken in after the end": [
        ("submit", 0, 1, NEW),
        ("cancel", 2, 3, Done()),
        ("signal:a", 4, 5, Done()),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert linearizable(history(*GOOD[name]), GATED, step)
    assert smallest_prefix(history(*GOOD[name]), GATED, step) == []


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    assert not linearizable(history(*BAD[name]), GATED, step)
    assert smallest_prefix(history(*BAD[name]), GATED, step)


def test_a_request_that_was_repeated_a_hundred_times_is_decided_at_once() -> None:
    silent = [("submit", at, math.inf, None) for at in range(100)]
    signals = [(f"signal:{'ab'[at % 2]}", 200 + at, math.inf, None) for at in range(100)]
    seen = ("status", 400, 401, Seen("running", 4, waits=False))
    assert linearizable(history(*silent, ("submit", 150, 151, KNOWN), *signals, seen), GATED, step)
    assert not linearizable(history(*silent, ("submit", 150, 151, NEW), ("submit", 152, 153, NEW)), GATED, step)


ANSWERS: Final = {
    "submit": [NEW, KNOWN, Submitted("wf-2", new=True), None],
    "signal": [Done(), Done(new=False), Ended(), None],
    "cancel": [Done(), Ended(), None],
    "status": [
        *(Seen(state, receipts, False) for state in ("running", "completed", "cancelled") for receipts in (3, 4)),
        BEHIND,
        Missing(),
    ],
}


@st.composite
def anything(draw: st.DrawFn) -> list[Operation]:
    """A short history that need not make sense."""
    made = []
    for _ in range(draw(st.integers(0, 5))):
        verb = draw(st.sampled_from(list(ANSWERS)))
        answer = draw(st.sampled_from(ANSWERS[verb]))
        began = draw(st.integers(0, 8))
        ended = math.inf if answer is None else began + draw(st.integers(1, 6))
        argument = draw(st.sampled_from("ab")) if verb == "signal" else ""
        made.append(Operation(verb, argument, began, ended, answer))
    return made


def _explained(order: tuple[Operation, ...]) -> bool:
    """Whether an order respects time and gives the answers."""
    for at, one in enumerate(order):
        if any(later.ended < one.began for later in order[at + 1 :]):
            return False
    states = {GATED}
    for one in order:
        states = {after for state in states for after in step(state, one)}
    return bool(states)


@settings(max_examples=150, deadline=None)
@given(anything())
def test_it_agrees_with_trying_every_order(operations: list[Operation]) -> None:
    silent = [one for one in operations if one.answer is None]
    answered = [one for one in operations if one.answer is not None]
    tried = any(
        _explained(order)
        for chosen in range(1 << len(silent))
        for order in permutations([*answered, *(one for at, one in enumerate(silent) if chosen >> at & 1)])
    )
    assert linearizable(operations, GATED, step) == tried


class Real:
    """A run as it ought to be: an object that does one thing at a time."""

    def __init__(self) -> None:
        self.run, self.receipts, self.end = False, 0, ""
        self.signals: set[str] = set()

    def do(self, verb: str, argument: str) -> Any:
        if verb == "submit":
            new, self.run = not self.run, True
            self.receipts += 3 * new
            return Submitted("wf-1", new)
        if not self.run:
            return Missing()
        if verb == "status":
            return Seen(self.end or "running", self.receipts, waits=not self.end and not self.signals)
        if verb == "signal" and argument in self.signals:
            return Done(new=False)
        if self.end:
            return Ended()
        self.receipts += 1
        if verb == "signal":
            self.signals.add(argument)
        else:
            self.end = "cancelled"
        return Done()

    def go_on(self) -> None:
        """What happens by itself."""
        if self.signals and not self.end:
            self.end, self.receipts = "completed", self.receipts + 2


@st.composite
def real(draw: st.DrawFn) -> list[Operation]:
    """What clients see of a real object: each request happens at an instant of its own, in a longer time around it."""
    instants, made = Real(), []
    for instant in range(draw(st.integers(1, 14))):
        if draw(st.booleans()):
            instants.go_on()
        verb = draw(st.sampled_from(["submit", "submit", "signal", "status", "status", "cancel"]))
        argument = draw(st.sampled_from("ab")) if verb == "signal" else ""
        began, ended = instant - draw(st.floats(0, 4)), instant + draw(st.floats(0.01, 4))
        done = draw(st.integers(0, 9)) > 0  # else it never arrived
        answer = instants.do(verb, argument) if done else None
        if verb == "status" and not done:
            continue
        if verb != "status" and (not done or draw(st.integers(0, 7)) == 0):
            ended, answer = math.inf, None  # or the answer was lost
        made.append(Operation(verb, argument, began, ended, answer))
    return made


@settings(max_examples=100, deadline=None)
@given(real())
def test_histories_of_a_real_object_pass(operations: list[Operation]) -> None:
    assert linearizable(operations, GATED, step)


@settings(max_examples=100, deadline=None)
@given(real(), st.data())
def test_what_cannot_be_true_is_found(operations: list[Operation], data: st.DataObject) -> None:
    """One more answer, after all others, that contradicts one of them."""
    taken = [one for one in operations if isinstance(one.answer, (Submitted, Seen, Done)) and one.verb != "cancel"]
    if not taken:
        return
    one = data.draw(st.sampled_from(taken))
    answer = one.answer
    if isinstance(answer, Submitted):
        wrong: Any = Submitted("wf-2", new=False)
    elif isinstance(answer, Done):
        wrong = Done(new=True)
    else:
        wrong = answer._replace(receipts=answer.receipts - 1)
    last = max(other.ended for other in operations if other.answer is not None)
    lie = Operation(one.verb, one.argument, last + 1, last + 2, wrong)
    assert not linearizable([*operations, lie], GATED, step)
