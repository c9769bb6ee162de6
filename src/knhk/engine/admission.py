"""Whether a new run may come in: limits, the state of the store, shutdown. Refusing early keeps what is inside fast."""

from collections.abc import Callable
from typing import Final

from knhk.domain.errors import DiskFull, Overloaded, ShuttingDown, Unavailable

_MOST_UNCOMMITTED_RECEIPTS: Final = 50_000
_RETRY_AFTER_S: Final = 1.0


class Admission:
    """The gate of one partition. The callables tell the present state; nothing is counted twice."""

    def __init__(
        self,
        *,
        max_queued: int,
        has_slot: Callable[[], bool],
        queued: Callable[[], int],
        uncommitted: Callable[[], int],
        fault: Callable[[], Unavailable | None],
    ) -> None:
        self._max_queued = max_queued
        self._has_slot, self._queued, self._uncommitted, self._fault = has_slot, queued, uncommitted, fault
        self.closed = False
        self.low_disk: DiskFull | None = None
        self.rejections: dict[str, int] = {"overloaded": 0, "unavailable": 0, "shutting_down": 0}

    def check(self) -> None:
        """Let a new run in.

        Raises:
            ShuttingDown: the process is about to end.
            DiskFull, StorageUnavailable: nothing can be committed now.
            Overloaded: every slot and every place in the queue is taken, or commits have fallen behind.
        """
        if self.closed:
            self.rejections["shutting_down"] += 1
            raise ShuttingDown("no new workflows are taken: the server is shutting down", retry_after_s=_RETRY_AFTER_S)
        fault = self._fault() or self.low_disk
        if fault is not None:
            self.rejections["unavailable"] += 1
            raise type(fault)(fault.message, retry_after_s=_RETRY_AFTER_S)
        if not self._has_slot() and self._queued() >= self._max_queued:
            self.rejections["overloaded"] += 1
            raise Overloaded(
                f"all slots are taken and {self._max_queued} workflows are queued already",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self._uncommitted() > _MOST_UNCOMMITTED_RECEIPTS:
            self.rejections["overloaded"] += 1
            raise Overloaded("commits have fallen behind what comes in", retry_after_s=_RETRY_AFTER_S)
