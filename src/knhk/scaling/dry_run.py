"""The driver where nothing can be changed: it counts what is there, and what is decided is advice."""

from collections.abc import Callable

from knhk.domain.errors import Refused

NAME = "dry-run"


class DryRun:
    """Implements ports.scaler.Scaler."""

    name = NAME

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    async def current(self) -> int:
        return self._count()

    async def scale_to(self, count: int) -> None:
        raise Refused(f"a dry run does not change the number of replicas to {count}")
