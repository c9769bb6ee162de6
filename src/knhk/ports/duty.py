"""What works by itself beside the runs: a room's background duty, started and stopped with the server."""

from typing import Protocol


class Duty(Protocol):
    """A duty MUST NOT slow or fail a run: its queues are bounded, and what it cannot do it says in `health`."""

    @property
    def room(self) -> str:
        """The room that it belongs to, a key of /health/detailed."""
        ...

    async def start(self) -> None:
        """Begin. Called once, when the engine has started. Raises only what must keep the server from starting."""
        ...

    async def stop(self) -> None:
        """End, and wait for what is under way. Called once, before the engine stops; safe if `start` failed."""
        ...

    def health(self) -> str:
        """`ok`, or what is wrong in a sentence. Quick, and never raises."""
        ...
