"""What a projection gives the projector: a function of committed events."""

from typing import Protocol

from knhk.domain.event import Detail, Event
from knhk.domain.summary import Summary


class Fold(Protocol):
    """Sees every committed event of its kinds once per process, in commit order; must be quick and never raise."""

    @property
    def kinds(self) -> frozenset[type[Detail]]:
        """The details of the events that it is given."""
        ...

    def take(self, summary: Summary, event: Event, action: str) -> None:
        """One event, and its run's row after it. `action` is that of the event's step, as far as it is known here:
        it is empty for the run itself, and for what is read from the journal, which holds no plans."""
        ...
