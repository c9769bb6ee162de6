"""Where the time of a run went, from its receipts: what each attempt waited for, what it took, and the critical path.

Pure functions of receipts as the API gives them (`GET /workflows/{id}/receipts`), so that a server and a data directory
answer alike. Every moment between the submission and the end of a run belongs to one segment of its critical path:

    queue      for a slot of the run, or for a place of an attempt among `platform.max_concurrent_steps`
    commit     until what the step depends on was durable, and dispatching
    execution  the action itself
    backoff    between an attempt that failed and the next one
    waiting    for a timer, a signal, an approval
    paused     an operator had the run paused
    engine     what is left, such as evaluating outputs
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

Kind = Literal["queue", "commit", "execution", "backoff", "waiting", "paused", "engine"]
KINDS: Final[tuple[Kind, ...]] = ("execution", "queue", "commit", "backoff", "waiting", "paused", "engine")
_OUTCOMES: Final = {
    "step.completed": "completed",
    "step.failed": "failed",
    "step.retrying": "retrying",
    "step.skipped": "skipped",
}
_ENDS: Final = frozenset({"workflow.completed", "workflow.failed", "workflow.cancelled", "workflow.timed_out"})
_NEAR: Final = 64
_INSIDE: Final = re.compile(r"[/\[]")
_INSTANCE: Final = re.compile(r"\[[^\]]*\]|:\w+")


class Segment(msgspec.Struct, frozen=True):
    """A stretch of time, Unix time in nanoseconds. `step` is a path, empty for the run itself."""

    kind: Kind
    from_ns: int
    to_ns: int
    step: str = ""
    action: str = ""
    attempt: int = 0

    @property
    def took_ns(self) -> int:
        return self.to_ns - self.from_ns


class Attempt(msgspec.Struct):
    """One attempt of a step. `waited_for` are the segments before and between; `outcome` is `running` until it ends."""

    number: int
    segments: list[Segment]
    outcome: str = "running"
    failure: Mapping[str, Any] | None = None

    @property
    def from_ns(self) -> int:
        return self.segments[0].from_ns

    @property
    def to_ns(self) -> int:
        return self.segments[-1].to_ns


class Step(msgspec.Struct):
    """A step by its path, with its attempts in order. `depends_on` are names beside it."""

    path: str
    action: str = ""
    depends_on: Sequence[str] = ()
    state: str = "pending"
    attempts: list[Attempt] = []

    @property
    def prefix(self) -> str:
        """The path of what it is in, with the slash."""
        return self.path[: self.path.rfind("/") + 1]

    @property
    def from_ns(self) -> int:
        return self.attempts[0].from_ns if self.attempts else 0

    @property
    def to_ns(self) -> int:
        return self.attempts[-1].to_ns if self.attempts else 0


class Timing(msgspec.Struct):
    """A run in time. `ended_ns` is now if it has not ended. Steps in the order in which they began."""

    workflow_id: str
    name: str
    submitted_ns: int
    started_ns: int
    ended_ns: int
    ended: bool
    steps: dict[str, Step]
    paused: list[tuple[int, int]]

    @property
    def took_ns(self) -> int:
        return self.ended_ns - self.submitted_ns


def timing_of(receipts: Sequence[Mapping[str, Any]], steps: Iterable[Mapping[str, Any]], now_ns: int) -> Timing:
    """The run that these receipts tell of; `steps` as in the API's answer (`name`, `action`, `depends_on`, `steps`)."""
    known = dict(_known(steps))
    timing = _run(receipts, now_ns)
    for receipt in receipts:
        if receipt["step"]:
            _take(timing, known, receipt)
    for step in timing.steps.values():
        last = step.attempts[-1] if step.attempts else None
        if last is not None and last.outcome == "running":
            open_segment = last.segments[-1]
            last.segments[-1] = msgspec.structs.replace(open_segment, to_ns=max(timing.ended_ns, open_segment.from_ns))
            if timing.ended:
                last.outcome = step.state = "cancelled"
    return timing


def critical_path(timing: Timing) -> list[Segment]:
    """What the run's time went to, from its submission to its end, without gaps: the chain that kept it from ending."""
    order = _Order(timing)
    chain: list[Step] = []
    step = order.last_by(timing.ended_ns)
    while step is not None and len(chain) <= len(timing.steps):
        chain.append(step)
        step = order.predecessor(step)
    segments = [Segment("queue", timing.submitted_ns, timing.started_ns)]
    for step in reversed(chain):
        for attempt in step.attempts:
            segments += attempt.segments
    return list(_without_gaps(timing, segments))


def step_type(path: str) -> str:
    """The step that an instance is of: `each[3]/inner` is one of `each/inner`, `pay:catch/tell` one of `pay/tell`."""
    return _INSTANCE.sub("", path)


def leaves(timing: Timing) -> list[Step]:
    """The steps that have no steps inside."""
    inner = {path[: at.start()] for path in timing.steps for at in _INSIDE.finditer(path)}
    return [step for path, step in timing.steps.items() if path not in inner]


def _known(steps: Iterable[Mapping[str, Any]], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for step in steps:
        path = prefix + str(step.get("name", ""))
        yield step_type(path), step
        yield from _known(step.get("steps") or (), f"{path}/")


def _run(receipts: Sequence[Mapping[str, Any]], now_ns: int) -> Timing:
    first = receipts[0]
    timing = Timing(
        first["workflow_id"], str(first["detail"].get("name", "")), first["at_ns"], 0, now_ns, False, {}, []
    )
    paused_ns = 0
    for receipt in receipts:
        kind, at_ns = receipt["kind"], receipt["at_ns"]
        if kind == "workflow.started" and not timing.started_ns:
            timing.started_ns = at_ns
        elif kind == "workflow.paused":
            paused_ns = at_ns
        elif paused_ns and (kind == "workflow.resumed" or kind in _ENDS):
            timing.paused.append((paused_ns, at_ns))
            paused_ns = 0
        if kind in _ENDS:
            timing.ended_ns, timing.ended = at_ns, True
        elif kind == "workflow.retried":
            timing.paused.append((timing.ended_ns, at_ns))  # between its first end and the retry nobody worked on it
            timing.ended_ns, timing.ended = now_ns, False
    if paused_ns:
        timing.paused.append((paused_ns, timing.ended_ns))
    timing.started_ns = timing.started_ns or timing.ended_ns
    return timing


def _take(timing: Timing, known: Mapping[str, Mapping[str, Any]], receipt: Mapping[str, Any]) -> None:
    path, kind, at_ns, detail = receipt["step"], receipt["kind"], receipt["at_ns"], receipt["detail"]
    step = timing.steps.get(path)
    if step is None:
        about = known.get(step_type(path), {})
        depends_on = [one if isinstance(one, str) else one.get("step", "") for one in about.get("depends_on") or ()]
        step = timing.steps[path] = Step(path, str(about.get("action", "")), depends_on, attempts=[])
    outcome = _OUTCOMES.get(kind)
    if outcome == "skipped":
        step.state = "skipped"
        return
    attempt = _attempt(timing, step, receipt)
    if outcome is None:
        if kind == "timer.set":
            _close(attempt, at_ns)
            attempt.segments.append(_segment(step, attempt, "waiting", at_ns, at_ns))
        step.state = "waiting" if kind == "timer.set" else "running"
        return
    _close(attempt, at_ns)
    attempt.outcome = step.state = outcome
    attempt.failure = detail.get("failure")
    if outcome == "retrying":
        attempt.segments.append(_segment(step, attempt, "backoff", at_ns, max(at_ns, detail.get("next_at_ns", at_ns))))


def _attempt(timing: Timing, step: Step, receipt: Mapping[str, Any]) -> Attempt:
    """The attempt that a receipt is about, begun if this is the first to tell of it."""
    number, detail, at_ns = receipt["attempt"], receipt["detail"], receipt["at_ns"]
    if step.attempts and (step.attempts[-1].outcome == "running" or receipt["kind"] == "timer.fired"):
        attempt = step.attempts[-1]
        start_ns = detail.get("started_at_ns", 0)
        if start_ns and attempt.segments[-1].kind == "execution" and len(attempt.segments) == 1:
            attempt.segments = _until_started(step, attempt, attempt.from_ns, start_ns, detail)
        return attempt
    start_ns = detail.get("started_at_ns", 0) or at_ns
    attempt = Attempt(max(number, 1), [])
    attempt.segments = _until_started(step, attempt, _ready_ns(timing, step, start_ns), start_ns, detail)
    step.attempts.append(attempt)
    return attempt


def _until_started(
    step: Step, attempt: Attempt, ready_ns: int, start_ns: int, detail: Mapping[str, Any]
) -> list[Segment]:
    """What an attempt waited for from when it could run, and its execution, open yet."""
    queued_ns = min(detail.get("queued_ns", 0), max(0, start_ns - ready_ns))
    if step.attempts:  # a further attempt has nothing to wait for but its turn
        queued_ns = max(0, start_ns - ready_ns)
    durable_ns = start_ns - queued_ns
    segments = [
        _segment(step, attempt, "commit", ready_ns, durable_ns),
        _segment(step, attempt, "queue", durable_ns, start_ns),
    ]
    return [one for one in segments if one.took_ns > 0] + [_segment(step, attempt, "execution", start_ns, start_ns)]


def _segment(step: Step, attempt: Attempt, kind: Kind, from_ns: int, to_ns: int) -> Segment:
    return Segment(kind, from_ns, to_ns, step.path, step.action, attempt.number)


def _close(attempt: Attempt, at_ns: int) -> None:
    last = attempt.segments[-1]
    attempt.segments[-1] = msgspec.structs.replace(last, to_ns=max(at_ns, last.from_ns))


def _ready_ns(timing: Timing, step: Step, start_ns: int) -> int:
    """When an attempt that began at `start_ns` could have begun."""
    if step.attempts:
        return min(step.attempts[-1].to_ns, start_ns)
    ends = [timing.steps[path].to_ns for name in step.depends_on if (path := step.prefix + name) in timing.steps]
    if ends:
        return min(max(ends), start_ns)
    return start_ns if step.prefix else min(timing.started_ns, start_ns)


class _Order:
    """Which leaf ended last by a time, and inside of which step."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._by_end = sorted((one for one in leaves(timing) if one.attempts), key=lambda one: (one.to_ns, one.from_ns))
        self._ends = [one.to_ns for one in self._by_end]
        self._inside: dict[str, Step] = {}
        for step in self._by_end:
            for at in _INSIDE.finditer(step.path):
                self._inside[step.path[: at.start()]] = step

    def last_by(self, at_ns: int, but: Step | None = None) -> Step | None:
        """The last leaf to end by a time; of those close to it rather one that is beside a given step."""
        at = bisect_right(self._ends, at_ns) - 1
        near = [one for one in self._by_end[max(0, at + 1 - _NEAR) : at + 1] if one is not but]
        beside = [one for one in near if but is not None and one.prefix == but.prefix]
        return beside[-1] if beside else near[-1] if near else None

    def predecessor(self, step: Step) -> Step | None:
        """What kept a step from beginning earlier: the last to end of what it depends on, or what ended before it."""
        steps = self._timing.steps
        begun = [steps[path] for name in step.depends_on if (path := step.prefix + name) in steps]
        if begun:
            last = max(begun, key=lambda one: one.to_ns)
            return self._inside.get(last.path, last)
        return self.last_by(step.from_ns, step) if step.prefix else None


def _without_gaps(timing: Timing, segments: Sequence[Segment]) -> Iterator[Segment]:
    """The segments in order, cut so that they neither overlap nor leave anything out."""
    at_ns = timing.submitted_ns
    for one in [*segments, Segment("engine", timing.ended_ns, timing.ended_ns)]:
        from_ns, to_ns = min(max(one.from_ns, at_ns), timing.ended_ns), min(one.to_ns, timing.ended_ns)
        if from_ns > at_ns:
            yield from _pauses_out(timing, Segment("engine", at_ns, from_ns))
            at_ns = from_ns
        if to_ns > at_ns:
            yield from _pauses_out(timing, msgspec.structs.replace(one, from_ns=at_ns, to_ns=to_ns))
            at_ns = to_ns


def _pauses_out(timing: Timing, segment: Segment) -> Iterator[Segment]:
    """A segment, with what of it was paused as segments of their own. An action that goes on meanwhile keeps its."""
    at_ns = segment.from_ns
    for from_ns, to_ns in () if segment.kind == "execution" else timing.paused:
        from_ns, to_ns = max(from_ns, at_ns), min(to_ns, segment.to_ns)
        if from_ns < to_ns:
            if from_ns > at_ns:
                yield msgspec.structs.replace(segment, from_ns=at_ns, to_ns=from_ns)
            yield Segment("paused", from_ns, to_ns)
            at_ns = to_ns
    if segment.to_ns > at_ns:
        yield msgspec.structs.replace(segment, from_ns=at_ns)
