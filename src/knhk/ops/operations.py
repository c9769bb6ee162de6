"""What the operations server needs to know and to be able to do: the composition root fills it in."""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from knhk.observability.readings import ABSENT, OK, WARNING

ROOMS: Final = ("persistence", "observability", "monitoring", "recovery", "scaling", "learning", "cost_tracking")
HEALTHY: Final = "healthy"
DEGRADED: Final = "degraded"
UNHEALTHY: Final = "unhealthy"
_VITAL: Final = "persistence"


class Operations(Protocol):
    """A running node as its operator sees it. What raises a KnhkError is answered as problem details."""

    @property
    def version(self) -> str: ...

    @property
    def uptime_s(self) -> float:
        """How long the process has been running."""
        ...

    @property
    def halted(self) -> str | None:
        """Why this process can never write again (another owner, damage): only a restart can help. None if it can."""
        ...

    async def health(self) -> Mapping[str, str]:
        """One text a room: `ok`, `absent` if it is not built, or what is wrong. A room left out is absent."""
        ...

    async def ready(self) -> tuple[bool, str]:
        """Whether workflows can be admitted now, and if not, why."""
        ...

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """The exposition in a format that the `Accept` header allows, and its content type."""
        ...

    async def checkpoint(self) -> Mapping[str, Any]:
        """Write a consistent copy of the store to a new directory: its `path`, and the `height` of its last block.

        Where there are several partitions with a store each, `partitions` has all of them.
        """
        ...

    async def drill(self) -> Mapping[str, Any]:
        """Restore the newest backup on trial and write down what came of it; the outcome as JSON-like data."""
        ...

    async def shutdown(self) -> None:
        """Begin the graceful stop in the background. Asking again changes nothing."""
        ...


def status_of(checks: Mapping[str, str], halted: str | None) -> str:
    """`unhealthy` if nothing can be recorded, `degraded` if a room has something else to say, else `healthy`."""
    wrong = [room for room, text in checks.items() if text not in (OK, ABSENT)]
    if halted is not None or (_VITAL in wrong and not checks[_VITAL].startswith(WARNING)):
        return UNHEALTHY
    return DEGRADED if wrong else HEALTHY


def all_rooms(checks: Mapping[str, str]) -> dict[str, str]:
    """The checks in the order of the guide, every room named; then those of rooms that not every node has."""
    return {room: checks.get(room, ABSENT) for room in ROOMS} | {
        room: text for room, text in checks.items() if room not in ROOMS
    }
