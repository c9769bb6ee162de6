"""The state of one run: its root frame, the frames open inside of it, and what belongs to the run as a whole."""

from collections import deque
from enum import StrEnum
from heapq import heappop, heappush
from typing import Final

from knhk.domain import event as ev
from knhk.domain.event import Failure
from knhk.domain.frame import Frame, InnerFrame, Role, StepState, frame_number, index_in_frame, is_halted
from knhk.domain.lease import Lease
from knhk.domain.plan import Block, Plan, is_resumable
from knhk.domain.waits import Waits


class RunState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


ENDED: Final = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT})
RETRYABLE: Final = frozenset({RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT})


_STAYS: Final = frozenset({StepState.COMPLETED, StepState.SKIPPED})
_ROLE_PATHS: Final = {
    Role.BODY: "",
    Role.CATCH: ":catch",
    Role.UNWIND: ":unwinding",
    Role.ON_FAILURE: ":on_failure",
    Role.FINALLY: ":finally",
}
"""What comes behind a step's path in the paths of the steps of a frame that was opened for it."""


class Inner:
    """The frames inside a run's own, by number, and by what the paths of their steps begin with.

    `busy` are those that have something ready, `closing` those that have nothing left to do, or have failed. `undoing`
    finds a compensation by its path.
    """

    __slots__ = ("busy", "closing", "frames", "newest", "prefixes", "undoing")

    def __init__(self) -> None:
        self.frames: dict[int, InnerFrame] = {}
        self.prefixes: dict[str, InnerFrame] = {}
        self.busy: deque[InnerFrame] = deque()
        self.closing: dict[int, InnerFrame] = {}
        self.newest = 0
        self.undoing: dict[str, tuple[InnerFrame, int]] = {}


class Run(Frame):
    """The state of one run, which is the frame of its outermost steps.

    `seq` is the number of receipts applied. What belongs to single steps in any frame is kept by their position:
    `timers` is a heap of (Unix time in ns, position) for steps that wait or retry and `timer_at_ns` says which of it
    still counts, `since_ns` since when they wait, `failures` is the last failure of each step, `skips` are the steps
    that will be skipped. `leases` are those of remote workers, by the step's path. `waits` is what steps wait for from
    others, None if none ever did. `reused` says where steps that were not run have from what they give.
    `undone` is how often what a step had done was undone, by its path. `decisions` are what operators
    decided under an idempotency key, with the key.
    `ending` says how the run will end while it puts things right before that, `finally_failed` what went wrong in that.
    `kept` are the frames of steps that did not complete, in which a retry may go on, by the step's index.
    `inner` is None until the first frame is opened, since most runs have none.
    """

    __slots__ = (
        "base_attempts",
        "deadline_ns",
        "decisions",
        "ended_at_ns",
        "ending",
        "erased",
        "failure",
        "failures",
        "finally_failed",
        "inner",
        "kept",
        "leases",
        "paused_at_ns",
        "plan",
        "results_root",
        "reused",
        "seq",
        "settled",
        "since_ns",
        "skips",
        "started_at_ns",
        "started_deadlines",
        "state",
        "submitted",
        "submitted_at_ns",
        "timer_at_ns",
        "timers",
        "undone",
        "waits",
        "workflow_id",
    )

    def __init__(self, workflow_id: int, plan: Plan) -> None:
        super().__init__(0, plan.root, "", None, len(plan.root.steps))
        self.workflow_id = workflow_id
        self.plan = plan
        self.seq = 0
        self.state = RunState.PENDING
        self.submitted: ev.Submitted | None = None
        self.submitted_at_ns = self.started_at_ns = self.ended_at_ns = self.deadline_ns = 0
        self.inner: Inner | None = None
        self.kept: dict[int, InnerFrame] | None = None
        self.skips: list[int] = []
        self.base_attempts: dict[int, int] = {}
        self.timers: list[tuple[int, int]] = []
        self.timer_at_ns: dict[int, int] = {}
        self.since_ns: dict[int, int] = {}
        self.paused_at_ns = 0
        self.started_deadlines: dict[int, int] = {}
        self.leases: dict[str, Lease] = {}
        self.failures: dict[int, Failure] = {}
        self.failure: Failure | None = None
        self.results_root = b""
        self.ending: ev.Ending | None = None
        self.finally_failed: Failure | None = None
        self.erased = False
        self.waits: Waits | None = None
        self.settled = False
        self.undone: dict[str, int] | None = None
        self.decisions: set[tuple[str, str]] | None = None
        self.reused: dict[int, ev.StepReused] | None = None

    def note_decision(self, verb: str, key: str) -> None:
        """An operator decided something about the run, under an idempotency key or, if that is empty, none."""
        if key:
            self.decisions = (self.decisions or set()) | {(verb, key)}

    def has_decided(self, verb: str, key: str) -> bool:
        """Whether an operator has decided this under the same key, which is not empty, before."""
        return self.decisions is not None and (verb, key) in self.decisions

    @property
    def ended(self) -> bool:
        """Whether the run is in one of its end states."""
        return self.state in ENDED

    @property
    def unsettled(self) -> bool:
        """Whether the run has ended and something must follow that is not done: its parent told, its children ended."""
        if self.settled or self.state not in ENDED:
            return False
        has_parent = self.submitted is not None and self.submitted.child_of.workflow_id
        return bool(has_parent or (self.waits is not None and self.waits.children))

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done before a timer is due or somebody asks for something."""
        return not self.in_flight and (self.state is not RunState.RUNNING or not self.has_work)

    @property
    def has_work(self) -> bool:
        """Whether something is ready."""
        if self.waits is not None and self.waits.due:
            return True
        inner = self.inner
        return bool(self.ready or self.skips or (inner is not None and (inner.busy or inner.closing)))

    def wake_at_ns(self) -> int:
        """When `decide` must be asked again at the latest (Unix time in ns), 0 if time alone changes nothing."""
        deadline = self.deadline_ns
        timers, current = self.timers, self.timer_at_ns
        while timers and current.get(timers[0][1]) != timers[0][0]:
            heappop(timers)  # The step moved on. Without these the answer is the same in memory and after a fold.
        # Once a step has failed for good, no timer begins anything: only the attempts under way are waited for.
        if self.state is RunState.RUNNING and self.timers and self.first_failed < 0:
            first = self.timers[0][0]
            return min(first, deadline) if deadline else first
        return deadline if not self.ended else 0

    def at(self, position: int) -> tuple[Frame, int]:
        """The frame of a step and its index there."""
        number = frame_number(position)
        if not number:
            return self, position
        assert self.inner is not None
        return self.inner.frames[number], index_in_frame(position)

    def key_of(self, path: str) -> str:
        """The key of all attempts at a step within its run: its path, with a number if it was undone and is done again.

        Who was told to undo something would take the same key again for what it has done and undone already.
        """
        times = self.undone.get(path.partition(":compensate")[0], 0) if self.undone else 0
        return f"{path}~{times + 1}" if times else path

    def path_of(self, position: int) -> str:
        """The path of a step."""
        frame, index = self.at(position)
        return frame.path(index)

    def locate(self, path: str) -> tuple[Frame, int]:
        """The frame of a step and its index there, by its path. Raises KeyError if its frame is not open."""
        index = self.block.index_of.get(path, -1)
        if index >= 0:
            return self, index
        if self.inner is None:
            raise KeyError(path)
        if path.endswith(":compensate"):
            return self.inner.undoing[path]
        if path.endswith("]"):
            cut = path.rindex("[") + 1
            return self.inner.prefixes[path[:cut]], int(path[cut:-1])
        cut = path.rfind("/") + 1
        frame = self.inner.prefixes[path[:cut]]
        return frame, frame.block.index_of[path[cut:]]

    def set_timer(self, position: int, at_ns: int, since_ns: int) -> None:
        """Have a step, which waits since a time, looked at when its time has come."""
        self.timer_at_ns[position] = at_ns
        self.since_ns[position] = since_ns
        heappush(self.timers, (at_ns, position))

    def make_ready(self, frame: Frame, index: int) -> None:
        """Let a step run."""
        frame.enqueue(index)
        if self.inner is not None and isinstance(frame, InnerFrame) and not frame.listed:
            frame.listed = True
            self.inner.busy.append(frame)

    def give_back(self, frame: Frame, index: int) -> None:
        """Let a step run later that was about to, and of which nothing was journaled since."""
        if frame.first_position + index not in self.started_deadlines:
            frame.steps[index] = StepState.PENDING
        self.make_ready(frame, index)

    def is_open(self, position: int) -> bool:
        """Whether the frame of a position is still there."""
        number = frame_number(position)
        return not number or (self.inner is not None and number in self.inner.frames)

    def may_begin(self, position: int) -> bool:
        """Whether an attempt inside may begin, although something may have happened since that was decided."""
        return self.is_open(position) and not is_halted(self.at(position)[0])

    def open(self, block: Block, frame: Frame, index: int, role: Role, count: int, *, under: str = "") -> InnerFrame:
        """Open a frame for a step; `under` is a path below the step's own. The caller lets its steps run."""
        if self.inner is None:
            self.inner = Inner()
        inner = self.inner
        inner.newest += 1
        path = (frame.path(index) if index >= 0 else "") + _ROLE_PATHS[role]
        if under:
            path += f"/{under}"
        prefix = path + ("[" if block.repeats else "/")
        opened = InnerFrame(inner.newest, block, prefix, frame, index, role, count)
        opened.opened_seq = self.seq
        inner.frames[opened.number] = inner.prefixes[prefix] = opened
        if frame.children is None:
            frame.children = {}
        frame.children[index] = opened
        return opened

    def stop(self) -> None:
        """Nothing that is under way goes on."""
        self.ready.clear()
        self.skips.clear()
        for child in tuple((self.children or {}).values()):
            if child.index >= 0:
                self.steps[child.index] = StepState.CANCELLED
            self.put_away(child)
        waiting = self.waits.stop() if self.waits is not None else ()
        for index in (*self.timer_at_ns, *self.started_deadlines, *waiting):
            self.steps[index] = StepState.CANCELLED
        self.timers.clear()
        self.timer_at_ns.clear()
        self.since_ns.clear()

    def put_away(self, frame: InnerFrame) -> None:
        """Close the frame of a step that has not completed; what had ended there is kept, as a retry may go on."""
        self.drop(frame)
        if frame.parent is not self or frame.role is not Role.BODY or not is_resumable(self.block.steps[frame.index]):
            return
        frame.children = None
        for at, state in enumerate(frame.steps):
            if state not in _STAYS and not (state is StepState.FAILED and frame.step(at).failure_is_handled):
                frame.steps[at] = StepState.PENDING
                frame.output_seqs[at], frame.output_digests[at] = -1, b""
        self.kept = {**(self.kept or {}), frame.index: frame}

    def drop(self, frame: InnerFrame) -> None:
        """Forget a frame and those inside it."""
        inner = self.inner
        assert inner is not None
        assert frame.parent.children is not None
        for one in tuple(frame.inside()):
            del inner.frames[one.number], inner.prefixes[one.prefix]
            inner.closing.pop(one.number, None)
            for undone in one.undoes or ():
                inner.undoing.pop(f"{undone.path}:compensate", None)
            positions = range(one.first_position, one.first_position + len(one.steps))
            held = (self.timer_at_ns, self.since_ns, self.started_deadlines, self.failures, self.base_attempts)
            for kept in (*held, self.reused):
                if kept:
                    for position in positions:
                        kept.pop(position, None)
            if self.waits is not None:
                for position in [one for one in self.waits.positions if one in positions]:
                    self.waits.forget(position)
            for path in [path for path in self.leases if path.startswith(one.prefix)]:
                del self.leases[path]
        del frame.parent.children[frame.index]


__all__ = ["ENDED", "RETRYABLE", "Run", "RunState", "StepState"]
