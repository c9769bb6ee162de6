"""Counts answers and keeps their latencies while load runs."""

from array import array

import msgspec

from bench.load_spec import LoadSpec

TERMINAL_FAILURES = frozenset({"failed", "cancelled", "timed_out"})
MAX_ERRORS_KEPT = 5
_TOO_BUSY = frozenset({429, 503})


class Submitted(msgspec.Struct):
    """What is read of the answer to a submit."""

    workflow_id: str
    state: str


class Tally:
    """Sorts answers into completed, failed, unfinished, refused and errors. Times are monotonic nanoseconds.

    A latency counts if its request began (or was meant to begin) after the warm-up, however late its answer comes:
    leaving out the answers after the end of the window would leave out the slowest.
    """

    def __init__(self, spec: LoadSpec, window_start_ns: int) -> None:
        self._decoder = msgspec.json.Decoder(Submitted)
        self._wait = spec.wait
        self._window_start_ns = window_start_ns
        self._window_end_ns = window_start_ns + int(spec.seconds * 1e9)
        self.latencies_ns = array("q")
        self.lags_ns = array("q")
        self.accepted = self.completed = self.failed = self.unfinished = self.refused = 0
        self.window_answers = self.answers_after_warmup = 0
        self.last_answer_ns = window_start_ns
        self.errors: list[str] = []

    def answer(self, began_ns: int, now_ns: int, status: int, body: bytes) -> bool:
        """Take one answer; False if the server was too busy for the request."""
        if status in _TOO_BUSY:
            self.refused += 1
            return False
        if not 200 <= status < 300:
            self.error(f"HTTP {status}: {body[:200].decode(errors='replace')}")
            return True
        try:
            state = self._decoder.decode(body).state
        except msgspec.DecodeError as problem:
            self.error(f"unreadable answer ({problem}): {body[:200].decode(errors='replace')}")
            return True
        self._accept(state)
        if now_ns >= self._window_start_ns:
            self.answers_after_warmup += 1
            self.last_answer_ns = now_ns
            if now_ns <= self._window_end_ns:
                self.window_answers += 1
            if began_ns >= self._window_start_ns:
                self.latencies_ns.append(now_ns - began_ns)
        return True

    def _accept(self, state: str) -> None:
        self.accepted += 1
        if not self._wait:
            return
        if state == "completed":
            self.completed += 1
        elif state in TERMINAL_FAILURES:
            self.failed += 1
        else:
            self.unfinished += 1

    def error(self, text: str) -> None:
        """Keep the first few; one is enough to fail the workload."""
        if len(self.errors) < MAX_ERRORS_KEPT:
            self.errors.append(text)

    def window_s(self, *, count_limited: bool) -> float:
        """How long the window was; a load of a given number of runs ends with its last answer."""
        end_ns = min(self.last_answer_ns, self._window_end_ns) if count_limited else self._window_end_ns
        return (end_ns - self._window_start_ns) / 1e9
