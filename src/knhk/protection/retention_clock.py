"""The time that retention believes: never far ahead of what was lived through, so that a wrong clock deletes nothing.

A machine whose clock jumps a year forward while it is off would make everything look old. So the last time at which
retention ran is kept in the store, and a start that finds the clock more than a week ahead of it holds: time goes on
from there, at its own pace, until an operator confirms that the clock is right.
"""

from typing import Final

import msgspec

from knhk.domain.times import rfc3339
from knhk.domain.units import DAY

LONGEST_GAP_NS: Final = 7 * DAY


class RetentionClock(msgspec.Struct):
    """`base_ns` is the time that is believed at the start of the process, when the clock said `started_ns`."""

    base_ns: int
    started_ns: int

    @classmethod
    def start(cls, clock_ns: int, last_ns: int) -> "RetentionClock":
        """At the start of a process; `last_ns` is the last time that was believed, 0 if there is none."""
        held = last_ns and clock_ns - last_ns > LONGEST_GAP_NS
        return cls(last_ns if held else clock_ns, clock_ns)

    def now_ns(self, clock_ns: int) -> int:
        """The time that is believed; `clock_ns` must not run backwards within a process."""
        return self.base_ns + max(0, clock_ns - self.started_ns)

    @property
    def is_held(self) -> bool:
        """Whether the clock is not believed."""
        return self.base_ns != self.started_ns

    def confirm(self) -> None:
        """An operator says that the clock is right."""
        self.base_ns = self.started_ns

    def sentence(self) -> str:
        """Why it is held."""
        return (
            f"the clock said {rfc3339(self.started_ns)} at the start, and the store was last used at "
            f"{rfc3339(self.base_ns)}: nothing is pruned by that clock until `knhk retention confirm`"
        )
