"""Where partitions are, and which one a request is about: what the rooms of routing share."""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final, Protocol

from knhk.engine.control import Control

HOME: Final = 0
"""The leader's partition: what one place must decide."""
CONTROL: ContextVar[Control | None] = ContextVar("control", default=None)
"""The control of the partition that the present request is about, if it is about one and that is here."""
FORWARDED: ContextVar[bool] = ContextVar("forwarded", default=False)
"""Whether another node has sent the present request on: it is not sent on again."""
UNANSWERED: ContextVar[set[str] | None] = ContextVar("unanswered", default=None)
"""Set by those who can do with a list that is not whole: it takes why parts of it are missing."""


class Places(Protocol):
    """Where partitions are."""

    @property
    def partitions(self) -> int:
        """How many there are."""
        ...

    wait_s: float
    """How long a request waits for a partition that is between two owners."""
    shared: bool
    """Whether this process can read every partition's journal, or the owner alone can."""
    shares_blobs: bool
    """Whether every partition can use the blobs that were sent to this process."""

    @property
    def reader(self) -> Control:
        """A control that reads the journal, all of it if it is shared, and changes nothing."""
        ...

    def homes(self, key: bytes) -> Sequence[int]:
        """The partition that an idempotency key belongs to, then those where it may have been used before."""
        ...

    def local(self, partition: int) -> Control | None:
        """The control of a partition that this process owns."""
        ...

    def open(self) -> Sequence[int]:
        """The partitions of this process that take new runs."""
        ...

    def remote(self, partition: int) -> str | None:
        """The URL of the node that owns a partition, if another one does."""
        ...

    def somewhere(self) -> str | None:
        """The URL of any other node, for a new run that no partition of this process can take."""
        ...

    def others(self) -> Sequence[str]:
        """The URLs of all other nodes that own partitions, for what is asked of every node."""
        ...

    def is_there(self, url: str) -> bool:
        """Whether the node at a URL is one of those that may own partitions, as far as this process knows."""
        ...

    def absent(self, partition: int) -> str:
        """Why nobody will own a partition soon; empty if it is worth waiting for an owner."""
        ...

    def listing(self, partition: int) -> Control | None:
        """A control that lists the runs of a partition; None if its owner must be asked."""
        ...
