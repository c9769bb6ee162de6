"""What a projection gives the projector: a function of committed events."""

from typing import Protocol

from knhk.domain.event import Event
from knhk.domain.summary import Summary


class Fold(Protocol):
    """Sees every committed event once per process, in commit order; must be quick and never raise."""

    def take(self, summary: Summary, event: Event) -> None:
        """One event, and its run's row after it."""
        ...
