"""A frame: one instance of a block with the state of each of its steps. The root frame is the run itself.

Frames are opened by events and dropped by events, so at any time they are what the receipts say. Within a run a step
instance has a *position*, the number of its frame and its index there; for a step of the workflow itself that is its
index. In receipts it has a *path*, such as `group/inner` or `each[3]/inner`.
"""

from collections import deque
from collections.abc import Iterator
from enum import IntEnum, StrEnum
from typing import Final

import msgspec

from knhk.domain.event import Failure
from knhk.domain.plan import Block, Step


class StepState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    RETRYING = "retrying"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    COMPENSATED = "compensated"


class Role(IntEnum):
    """What the end of a frame means for the step that it was opened for."""

    BODY = 0
    """It is what the step does."""
    CATCH = 1
    """It is what is done about the step's failure."""
    UNWIND = 2
    """It undoes what was done, in the step or in the whole run."""
    ON_FAILURE = 3
    FINALLY = 4


INDEX_BITS: Final = 24
"""A position holds the index in so many bits, and the number of the frame above them."""
FIRST_INSIDE: Final = 1 << INDEX_BITS
"""Positions from here on are of steps in frames inside; those below are indexes of the workflow's own steps."""
_INDEX: Final = (1 << INDEX_BITS) - 1


_UNDONE: Final = frozenset({StepState.COMPLETED, StepState.FAILED})
"""States of compensations that are over."""


class Done(msgspec.Struct, frozen=True):
    """Something that a step has done and that can be undone: its path, and the receipt of its completion."""

    path: str
    step: Step
    seq: int


class Frame:
    """The state of one block while it runs.

    Lists are indexed like the block's steps. `ready` holds steps that may run, once each: an entry counts while its
    byte in `queued` is set, what meanwhile moved on is passed over. `remaining` is how many dependencies of each step
    have not ended, `doomed` are the steps that will be skipped once all have. `completed` steps and `others`, which
    ended in another way that the block can live with, make up all of a block that is done; `first_failed` is the first
    step whose failure is the block's, or -1. `done` is what can be undone of it. `children` are the frames open inside,
    by their step's index.

    `in_flight` counts the attempts that this process is performing in this frame and those inside it; it is no part of
    the fold.
    """

    __slots__ = (
        "attempts",
        "block",
        "children",
        "completed",
        "done",
        "doomed",
        "first_failed",
        "first_position",
        "in_flight",
        "number",
        "others",
        "output_digests",
        "output_seqs",
        "parent",
        "prefix",
        "queued",
        "ready",
        "remaining",
        "steps",
    )

    def __init__(self, number: int, block: Block, prefix: str, parent: "Frame | None", count: int) -> None:
        self.number, self.block, self.prefix, self.parent = number, block, prefix, parent
        self.first_position = number << INDEX_BITS
        self.steps = [StepState.PENDING] * count
        self.attempts = [0] * count
        self.remaining = list(block.waits_for)
        self.output_seqs = [-1] * count
        self.output_digests = [b""] * count
        self.ready: deque[int] = deque()
        self.queued = bytearray(count)
        self.doomed: set[int] | None = None
        self.done: list[Done] | None = None
        self.children: dict[int, InnerFrame] | None = None
        self.completed = self.others = self.in_flight = 0
        self.first_failed = -1

    def own_done(self) -> list[Done]:
        """What was done in this frame alone and can be undone."""
        return self.done or []

    def step(self, index: int) -> Step:
        """What the step at an index is."""
        return self.block.steps[index]

    def path(self, index: int) -> str:
        """The path of a step, by which receipts name it."""
        return self.prefix + self.block.steps[index].name

    @property
    def is_done(self) -> bool:
        """Whether every step has ended, and none so that the block fails."""
        return self.completed + self.others == len(self.steps)

    def enqueue(self, index: int) -> None:
        """Let a step run."""
        self.queued[index] = 1
        self.ready.append(index)

    def count_attempt(self, difference: int) -> None:
        """An attempt has begun (1) or ended (-1) in this frame."""
        frame: Frame | None = self
        while frame is not None:
            frame.in_flight += difference
            frame = frame.parent


class InnerFrame(Frame):
    """A frame inside another.

    It was opened for the step at `index` of `parent` by the receipt `opened_seq`, and `tolerance` more of its steps
    may fail. Of what is repeated, `started` instances were let run so far, at most `concurrency` at a time;
    `again` are those of them that a retry does once more, the last first. `winner` is
    the branch that won where branches compete, or -1. `undoes` is what a frame of compensations undoes, in that order;
    `first_failure` the first one that was tolerated. Frames that the whole run needs have the index -1. `listed` says
    whether the frame is in the run's queue; it is no part of the fold.
    """

    __slots__ = (
        "again",
        "concurrency",
        "first_failure",
        "index",
        "listed",
        "opened_at_ns",
        "opened_seq",
        "role",
        "started",
        "tolerance",
        "undoes",
        "winner",
    )
    parent: Frame

    def __init__(
        self, number: int, block: Block, prefix: str, parent: Frame, index: int, role: Role, count: int
    ) -> None:
        super().__init__(number, block, prefix, parent, count)
        self.index, self.role = index, role
        self.tolerance = 0
        self.concurrency = 1
        self.opened_seq = self.opened_at_ns = 0
        self.winner = -1
        self.undoes: list[Done] | None = None
        self.first_failure: Failure | None = None
        self.started = 0
        self.again: list[int] = []
        self.listed = False

    def own_done(self) -> list[Done]:
        """Also what compensations have not come to yet: it is still to be undone if something around them ends."""
        left = [one for one, state in zip(self.undoes or (), self.steps, strict=False) if state not in _UNDONE]
        return [*super().own_done(), *left]

    def step(self, index: int) -> Step:
        if self.undoes is not None:
            compensation = self.undoes[index].step.compensate
            assert compensation is not None
            return compensation
        return self.block.steps[0 if self.block.repeats else index]

    def path(self, index: int) -> str:
        if self.undoes is not None:
            return f"{self.undoes[index].path}:compensate"
        return f"{self.prefix}{index}]" if self.block.repeats else self.prefix + self.block.steps[index].name

    def grow(self, count: int) -> None:
        """Let there be so many instances of what is repeated."""
        more = count - len(self.steps)
        self.steps += [StepState.PENDING] * more
        self.attempts += [0] * more
        self.output_seqs += [-1] * more
        self.output_digests += [b""] * more
        self.queued += bytes(more)

    def take_done(self) -> list[Done]:
        """What was done in this frame and those inside it and can be undone. Nobody gets it a second time."""
        return [done for frame in self.inside() for done in frame.own_done()]

    def inside(self) -> "Iterator[InnerFrame]":
        """This frame and all that are open inside it."""
        yield self
        for child in (self.children or {}).values():
            yield from child.inside()


def is_halted(frame: Frame) -> bool:
    """Whether nothing may begin in a frame any more, because it or one around it has failed or is decided."""
    around: Frame | None = frame
    while around is not None:
        if around.first_failed >= 0 or (isinstance(around, InnerFrame) and around.winner >= 0):
            return True
        around = around.parent
    return False


def frame_number(position: int) -> int:
    """The number of the frame of a step's position."""
    return position >> INDEX_BITS


def index_in_frame(position: int) -> int:
    """The index of a step's position in its frame."""
    return position & _INDEX
