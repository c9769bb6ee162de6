"""How the interpreter itself holds up: how late the event loop is, and how long garbage collections stop everything."""

import gc
from collections.abc import Iterator
from time import perf_counter
from typing import Any, Final

from prometheus_client.core import Metric

from knhk.domain.histogram import SHORT_S, Histogram
from knhk.observability.families import histogram_family, labelled_histograms
from knhk.observability.readings import OK
from knhk.ports.environment import Cancellable, Clock

_EVERY_S: Final = 0.25
_GENERATIONS: Final = 3


class Interpreter:
    """Measures while it is started. A duty of the room observability."""

    room: Final = "observability"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._planned: Cancellable | None = None
        self._due_ns = 0
        self._collection_began = 0.0
        self.lag = Histogram(SHORT_S)
        self.pauses = [Histogram(SHORT_S) for _ in range(_GENERATIONS)]

    async def start(self) -> None:
        """Begin to measure."""
        gc.callbacks.append(self._collection)
        self._plan()

    async def stop(self) -> None:
        """Measure nothing any more."""
        if self._planned is not None:
            self._planned.cancel()
            self._planned = None
        if self._collection in gc.callbacks:
            gc.callbacks.remove(self._collection)

    def health(self) -> str:
        """Always well: what it measures is judged elsewhere."""
        return OK

    def families(self) -> Iterator[Metric]:
        """What was measured, for the metrics."""
        yield histogram_family(
            "knhk_event_loop_lag_seconds", "How late the event loop came to a call, asked 4 times a second.", self.lag
        )
        yield labelled_histograms(
            "knhk_gc_pause_seconds",
            "Time for which a garbage collection stopped the process.",
            "generation",
            {str(number): pauses for number, pauses in enumerate(self.pauses)},
        )

    def _plan(self) -> None:
        self._due_ns = self._clock.now_ns() + int(_EVERY_S * 1e9)
        self._planned = self._clock.call_later(_EVERY_S, self._called)

    def _called(self) -> None:
        self.lag.add(max(0, self._clock.now_ns() - self._due_ns) / 1e9)
        self._plan()

    def _collection(self, phase: str, details: dict[str, Any]) -> None:
        if phase == "start":
            self._collection_began = perf_counter()
        else:
            self.pauses[details["generation"]].add(perf_counter() - self._collection_began)
