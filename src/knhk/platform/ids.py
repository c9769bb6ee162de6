"""New workflow ids."""

from knhk.domain import identifier
from knhk.ports.environment import Clock


class SnowflakeIds:
    """Implements ports.environment.Ids: ids grow with time, and are unique as long as the clock does not go back.

    When the sequence of a millisecond is used up, or after a start within the millisecond of the newest id, the next
    milliseconds are borrowed.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_ms = 0
        self._sequence = 0

    def next_id(self, partition: int) -> int:
        now_ms = self._clock.now_ns() // 1_000_000
        if now_ms > self._last_ms:
            self._last_ms, self._sequence = now_ms, 0
        else:
            self._sequence += 1
            if self._sequence > identifier.MAX_SEQUENCE:
                self._last_ms, self._sequence = self._last_ms + 1, 0
        return identifier.compose(self._last_ms, partition, self._sequence)
