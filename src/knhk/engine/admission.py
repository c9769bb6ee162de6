"""Whether a new run may come in: limits, the state of the store, shutdown. Refusing early keeps what is inside fast."""

from collections.abc import Callable
from typing import Final

from knhk.domain.errors import DiskFull, Overloaded, ShuttingDown, Unavailable
from knhk.domain.limits import NO_LIMITS
from knhk.domain.plan import Plan
from knhk.engine.queue import Queue

_MOST_UNCOMMITTED_RECEIPTS: Final = 50_000
_RETRY_AFTER_S: Final = 1.0


class Admission:
    """The gate of one partition. The callables tell the present state; nothing is counted twice."""

    def __init__(
        self,
        *,
        max_queued: int,
        has_slot: Callable[[], bool],
        queue: Queue,
        uncommitted: Callable[[], int],
        fault: Callable[[], Unavailable | None],
        require_blobs: Callable[[bytes], None],
    ) -> None:
        self._max_queued = max_queued
        self._has_slot, self._queue, self._uncommitted, self._fault = has_slot, queue, uncommitted, fault
        self.require_blobs = require_blobs
        """Raises BlobNotFound if a payload that comes in refers to a blob that is not there."""
        self.closed = False
        self.low_disk: DiskFull | None = None
        self.rejections: dict[str, int] = {"overloaded": 0, "unavailable": 0, "shutting_down": 0}

    def check(self) -> None:
        """Let a new run in.

        Raises:
            ShuttingDown, DiskFull, StorageUnavailable: see check_open.
            Overloaded: no department could have a place in the queue, or commits have fallen behind.
        """
        self.check_open()
        if not self._has_slot() and len(self._queue) >= 2 * self._max_queued:
            raise self._full()
        if self._uncommitted() > _MOST_UNCOMMITTED_RECEIPTS:
            self.rejections["overloaded"] += 1
            raise Overloaded("commits have fallen behind what comes in", retry_after_s=_RETRY_AFTER_S)

    def check_place(self, plan: Plan) -> None:
        """Let in a run of a department, into a slot or the queue.

        Once the queue is full, it still takes runs of departments that have less than an equal share of it, so that one
        that floods it does not shut out the others. All of them together are never more than twice `max_queued`.

        Raises Overloaded.
        """
        queue, most = self._queue, self._max_queued
        if len(queue) < most or (self._has_slot() and plan.limits is NO_LIMITS):
            return
        waiting = queue.of(plan.department)
        share = most // (queue.departments + (0 if waiting else 1))
        if waiting >= share or len(queue) >= 2 * most:
            raise self._full()

    def _full(self) -> Overloaded:
        self.rejections["overloaded"] += 1
        return Overloaded(
            f"all slots are taken and {len(self._queue)} workflows are queued already", retry_after_s=_RETRY_AFTER_S
        )

    def check_open(self) -> None:
        """Let in what needs no slot.

        Raises:
            ShuttingDown: the process is about to end.
            DiskFull, StorageUnavailable: nothing can be committed now.
        """
        if self.closed:
            self.rejections["shutting_down"] += 1
            raise ShuttingDown("no new workflows are taken: the server is shutting down", retry_after_s=_RETRY_AFTER_S)
        fault = self._fault() or self.low_disk
        if fault is not None:
            self.rejections["unavailable"] += 1
            raise type(fault)(fault.message, retry_after_s=_RETRY_AFTER_S)
