"""What the steps of a run wait for that somebody else must do: events, approvals, child workflows; and what came.

Part of the fold of a run, so what waits, what was kept and what fits together follow from the receipts alone. A signal
goes to the step that has waited longest for it; one that nobody waits for is kept until a step does. What fits is a
*delivery*: the step has it for certain, and completes or fails with it when the run is next looked at.
"""

from typing import Any, Final, Literal, TypeVar

import msgspec

from knhk.domain.event import Failure
from knhk.domain.times import rfc3339

WaitKind = Literal["event", "approval", "child"]
_Key = TypeVar("_Key")
MOST_KEPT: Final = 1_000
"""So many signals are kept by a run for steps that do not wait yet."""


class Waiting(msgspec.Struct, frozen=True):
    """What a step waits for. `until_ns` is when it gives up, 0 for never; times are Unix time in ns.

    `event` and `correlate` say which signals fit. An approval needs `required` of `approvers`, who are all if none are
    named; `on_reject` is what a rejection does to the step. `child` is the run that the step waits for.
    """

    kind: WaitKind
    since_ns: int
    until_ns: int = 0
    event: str = ""
    correlate: str = ""
    approvers: tuple[str, ...] = ()
    required: int = 1
    on_reject: str = "fail"
    message: str = ""
    child: int = 0


class Signal(msgspec.Struct, frozen=True):
    """Something that came from outside. `seq` is the receipt that holds its data."""

    seq: int
    event: str
    correlate: str
    id: str
    at_ns: int
    actor: str


class ChildResult(msgspec.Struct, frozen=True):
    """How a child ended. `seq` is the receipt that holds what it gave."""

    seq: int
    child: int
    state: str
    failure: Failure | None


class Verdict(msgspec.Struct, frozen=True):
    """One person's answer to a request for approval."""

    approver: str
    approved: bool
    comment: str
    at_ns: int


class Waits:
    """What a run's steps wait for, by their position, and the signals that came.

    `children` are the children that are not known to have ended, each with the step that began it.
    """

    __slots__ = ("_by_event", "_by_key", "children", "deliveries", "due", "ids", "kept", "positions", "verdicts")

    def __init__(self) -> None:
        self.positions: dict[int, Waiting] = {}
        self.verdicts: dict[int, list[Verdict]] = {}
        self.kept: dict[str, list[Signal]] = {}
        self.ids: set[str] = set()
        self.deliveries: dict[int, Signal | ChildResult | None] = {}
        self.children: dict[int, int] = {}
        self.due: dict[int, None] = {}
        self._by_key: dict[tuple[str, str], dict[int, None]] = {}
        self._by_event: dict[str, dict[int, None]] = {}

    def begin(self, position: int, waiting: Waiting) -> None:
        """A step begins to wait; a signal that was kept for it is delivered at once."""
        self.positions[position] = waiting
        if waiting.kind == "child":
            self.children[waiting.child] = position
        if waiting.kind != "event":
            return
        for signal in self.kept.get(waiting.event, ()):
            if signal.correlate in ("", waiting.correlate):
                self._take_kept(signal)
                self._deliver(position, signal)
                return
        self._by_key.setdefault((waiting.event, waiting.correlate), {})[position] = None
        self._by_event.setdefault(waiting.event, {})[position] = None

    def receive(self, signal: Signal) -> None:
        """A signal came: it is delivered, or kept."""
        self.ids.add(signal.id)
        position = self.taker(signal.event, signal.correlate)
        if position is None:
            self.kept.setdefault(signal.event, []).append(signal)
        else:
            self._forget_index(position)
            self._deliver(position, signal)

    def taker(self, event: str, correlate: str) -> int | None:
        """The step that has waited longest for such a signal; one without `correlate` fits whatever a step names."""
        waiting = self._by_key.get((event, correlate)) if correlate else self._by_event.get(event)
        return next(iter(waiting)) if waiting else None

    def judge(self, position: int, verdict: Verdict) -> None:
        """Somebody approved or rejected: enough of that is a delivery."""
        waiting = self.positions.get(position)
        if waiting is None:
            return
        verdicts = self.verdicts.setdefault(position, [])
        verdicts.append(verdict)
        if position not in self.deliveries and (not verdict.approved or len(verdicts) >= waiting.required):
            self._deliver(position, None)

    def child_ended(self, result: ChildResult) -> None:
        """A child has ended: if its step still waits for it, that is a delivery."""
        position = self.children.pop(result.child, None)
        waiting = None if position is None else self.positions.get(position)
        if position is not None and waiting is not None and waiting.child == result.child:
            self._deliver(position, result)

    @property
    def orphans(self) -> list[int]:
        """The children for which no step waits any more."""
        return [
            child
            for child, position in self.children.items()
            if position not in self.positions or self.positions[position].child != child
        ]

    @property
    def kept_count(self) -> int:
        """How many signals are kept."""
        return sum(map(len, self.kept.values()))

    def untaken(self) -> list[int]:
        """The receipts whose data a step has been given, or may yet be."""
        delivered = [signal.seq for signal in self.deliveries.values() if signal is not None]
        return [*delivered, *[signal.seq for kept in self.kept.values() for signal in kept]]

    def forget(self, position: int) -> None:
        """A step waits no more."""
        if position in self.positions:
            self._forget_index(position)
            del self.positions[position]
            self.deliveries.pop(position, None)
            self.due.pop(position, None)
            self.verdicts.pop(position, None)

    def stop(self) -> list[int]:
        """Nobody waits any more; what was delivered and not taken is kept again. The positions that waited."""
        stopped = list(self.positions)
        for signal in self.deliveries.values():
            if isinstance(signal, Signal):
                self.kept.setdefault(signal.event, []).append(signal)
        for kept in self.kept.values():
            kept.sort(key=lambda one: one.seq)
        for held in (self.positions, self.verdicts, self.deliveries, self.due, self._by_key, self._by_event):
            held.clear()
        return stopped

    def _deliver(self, position: int, signal: Signal | ChildResult | None) -> None:
        self.deliveries[position] = signal
        self.due[position] = None

    def _take_kept(self, signal: Signal) -> None:
        kept = self.kept[signal.event]
        kept.remove(signal)
        if not kept:
            del self.kept[signal.event]

    def _forget_index(self, position: int) -> None:
        waiting = self.positions[position]
        _discard(self._by_key, (waiting.event, waiting.correlate), position)
        _discard(self._by_event, waiting.event, position)


def _discard(index: dict[_Key, dict[int, None]], key: _Key, position: int) -> None:
    positions = index.get(key)
    if positions is not None:
        positions.pop(position, None)
        if not positions:
            del index[key]


def output_of(signal: Signal, data: Any) -> dict[str, Any]:
    """What a step gives that waited for an event."""
    return {
        "event": signal.event,
        "id": signal.id,
        "correlate": signal.correlate,
        "data": data,
        "at": rfc3339(signal.at_ns),
        "by": signal.actor,
    }


def judged(waiting: Waiting, verdicts: list[Verdict]) -> dict[str, Any] | Failure:
    """What a step gives that waited for approval, or how it fails."""
    rejection = next((one for one in verdicts if not one.approved), None)
    if rejection is not None and waiting.on_reject == "fail":
        why = f": {rejection.comment}" if rejection.comment else ""
        return Failure("KNHK-APPROVAL-REJECTED", f"rejected by {rejection.approver}{why}")
    return {
        "approved": rejection is None,
        "by": [one.approver for one in verdicts],
        "verdicts": [
            {"approver": one.approver, "approved": one.approved, "comment": one.comment, "at": rfc3339(one.at_ns)}
            for one in verdicts
        ],
    }


def timed_out(waiting: Waiting) -> Failure:
    """How a step fails for which nobody came in time."""
    seconds = (waiting.until_ns - waiting.since_ns) / 1e9
    match waiting.kind:
        case "event":
            which = f" with correlation {waiting.correlate!r}" if waiting.correlate else ""
            return Failure("KNHK-EVENT-TIMEOUT", f"no event {waiting.event!r}{which} within {seconds:g} s")
        case "approval":
            return Failure("KNHK-APPROVAL-TIMEOUT", f"not approved within {seconds:g} s")
        case "child":
            return Failure("KNHK-CHILD-TIMEOUT", f"the child workflow did not end within {seconds:g} s")
