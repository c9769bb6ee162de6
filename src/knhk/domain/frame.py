"""A frame: one instance of a block with the state of each of its steps. The root frame is the run itself.

Frames are opened by events and dropped by events, so at any time they are what the receipts say. Within a run a step
instance has a *position*, the number of its frame and its index there; for a step of the workflow itself that is its
index. In receipts it has a *path*, such as `group/inner` or `each[3]/inner`.
"""

from collections import deque
from enum import StrEnum
from typing import Final, Self

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


INDEX_BITS: Final = 24
"""A position holds the index in so many bits, and the number of the frame above them."""
FIRST_INSIDE: Final = 1 << INDEX_BITS
"""Positions from here on are of steps in frames inside; those below are indexes of the workflow's own steps."""
_INDEX: Final = (1 << INDEX_BITS) - 1


class Frame:
    """The state of one block while it runs.

    Lists are indexed like the block's steps. `ready` holds steps that may run, once each: an entry counts while its
    byte in `queued` is set, what meanwhile moved on is passed over. `remaining` is how many dependencies of each step
    have not ended, `doomed` are the steps that will be skipped once all have. `completed` steps and `others`, which
    ended in another way that the block can live with, make up all of a block that is done; `first_failed` is the first
    step whose failure is the block's, or -1.

    `in_flight` counts the attempts that this process is performing in this frame and those inside it, `listed` says
    whether the frame is in the run's queue; neither is part of the fold.
    """

    __slots__ = (
        "attempts",
        "block",
        "completed",
        "doomed",
        "first_failed",
        "first_position",
        "in_flight",
        "listed",
        "number",
        "others",
        "output_digests",
        "output_seqs",
        "parent",
        "parent_index",
        "prefix",
        "queued",
        "ready",
        "remaining",
        "steps",
    )

    def __init__(self, number: int, block: Block, prefix: str, parent: Self | None, parent_index: int) -> None:
        count = len(block.steps)
        self.number, self.block, self.prefix = number, block, prefix
        self.parent, self.parent_index = parent, parent_index
        self.first_position = number << INDEX_BITS
        self.steps = [StepState.PENDING] * count
        self.attempts = [0] * count
        self.remaining = list(block.waits_for)
        self.output_seqs = [-1] * count
        self.output_digests = [b""] * count
        self.ready: deque[int] = deque()
        self.queued = bytearray(count)
        self.doomed: set[int] | None = None
        self.completed = self.others = self.in_flight = 0
        self.first_failed = -1
        self.listed = False

    def step(self, index: int) -> Step:
        """What the step at an index is."""
        return self.block.steps[index]

    def path(self, index: int) -> str:
        """The path of a step, by which receipts name it."""
        name = self.block.steps[index].name
        return self.prefix + name if self.prefix else name

    def enqueue(self, index: int) -> None:
        """Let a step run."""
        self.queued[index] = 1
        self.ready.append(index)


def frame_number(position: int) -> int:
    """The number of the frame of a step's position."""
    return position >> INDEX_BITS


def index_in_frame(position: int) -> int:
    """The index of a step's position in its frame."""
    return position & _INDEX
