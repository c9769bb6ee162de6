"""What the receipts of one run must say, whatever has happened: nothing twice, and undone in reverse."""

from collections.abc import Set

from knhk.domain import event as ev
from knhk.domain.event import Event

_ENDS = ev.StepCompleted | ev.StepReused | ev.StepSkipped | ev.StepFailed
_AGAIN = ev.StepOpened | ev.StepRetrying | ev.StepUnwinding | ev.StepCaught


def is_within(path: str, around: str) -> bool:
    """Whether a step is inside another, or is one of its instances."""
    return path.startswith((f"{around}/", f"{around}[", f"{around}:")) or not around


class Chronicle:
    """Reads receipts in their order. `over` are the steps that have ended and have not been begun again since.

    Steps named in `compensable` can be undone, or each instance of them if they are `repeated` too.
    """

    def __init__(self, compensable: Set[str], repeated: Set[str] = frozenset()) -> None:
        self.problems: list[str] = []
        self.over: dict[str, Event] = {}
        self.done: list[str] = []
        self._compensable, self._repeated = compensable, repeated
        self._undoing: list[str] = []

    def read(self, events: list[Event]) -> "Chronicle":
        """Take in what happened."""
        for event in events:
            self._take(event)
        return self

    def _take(self, event: Event) -> None:
        path, detail = event.step, event.detail
        if isinstance(detail, ev.Ending):
            self._undoing = [""]
        elif isinstance(detail, ev.Retried):
            self._undoing = []
            for one, ended in tuple(self.over.items()):
                name = next((name for name in detail.steps if one == name or is_within(one, name)), None)
                kept = name in detail.resumed and one != name and not isinstance(ended.detail, ev.StepFailed)
                if name is not None and not kept:
                    del self.over[one]
            for one in [one for one in self.over if one.startswith(":") or ":compensate" in one]:
                del self.over[one]
            self.done = [one for one in self.done if not one.startswith(":")]
        elif isinstance(detail, ev.StepUnwinding):
            self._undoing.append(path)
            for one in [one for one in self.over if is_within(one, path) and ":compensate" in one]:
                del self.over[one]
        elif isinstance(detail, ev.StepCompensated):
            self._compensated(path)
            return
        if isinstance(detail, _AGAIN):
            for one in [one for one in self.over if is_within(one, path) and ":compensate" not in one]:
                del self.over[one]
        if isinstance(detail, _ENDS):
            self._ended(path, event)

    @property
    def left(self) -> list[str]:
        """What was not undone, but for what came at the end of the run."""
        return [one for one in self.done if not one.startswith(":")]

    def _ended(self, path: str, event: Event) -> None:
        if path in self.over and ":compensate" not in path:
            self.problems.append(f"{path} ended a second time: {event.detail}")
        self.over[path] = event
        if path in self._undoing:
            self._undoing.remove(path)
        if isinstance(event.detail, ev.StepCompleted) and self._can_be_undone(path):
            self.done.append(path)
        if isinstance(event.detail, ev.StepFailed) and path.endswith(":compensate"):
            self.done.remove(path.removesuffix(":compensate"))

    def _can_be_undone(self, path: str) -> bool:
        if ":compensate" in path:
            return False
        name, repeated, _ = path.rpartition("/")[2].partition("[")
        return name in self._compensable and (bool(repeated) or name not in self._repeated)

    def _compensated(self, path: str) -> None:
        around = max((one for one in self._undoing if is_within(path, one)), key=len, default=None)
        if around is None:
            self.problems.append(f"{path} was undone although nothing had failed")
            return
        inside = [one for one in self.done if is_within(one, around)]
        if not inside or inside[-1] != path:
            self.problems.append(f"{path} was undone, but {inside[-1:]} was done last of what is in {around!r}")
        if path in self.done:
            self.done.remove(path)
