"""What the load process is asked for and what it answers: one JSON object each, on its standard input and output."""

import msgspec

from bench.cost import Cost
from bench.percentiles import Latencies


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of load.

    `rate` 0 is a closed loop: each connection sends again when it has its answer. Otherwise `rate` requests a second
    are sent come what may. `max_count` 0 means that only the time is a limit. With `wait` the server answers at the
    end of the run, so the answer's latency is that of the whole run.
    """

    host: str
    port: int
    descriptor: str
    wait: bool
    connections: int
    warmup_s: float
    seconds: float
    max_count: int = 0
    rate: int = 0
    first_serial: int
    server_pid: int
    answer_timeout_s: float = 60.0

    @property
    def target(self) -> str:
        """The request target of the submit."""
        return "/workflows?wait=30s" if self.wait else "/workflows"


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. Counts are of the whole stretch unless they say otherwise.

    The window is the time after the warm-up until the end of sending. With `wait`, `accepted` is the sum of
    `completed`, `failed` and `unfinished`; without, these are not known and 0.
    """

    sent: int
    accepted: int
    completed: int
    failed: int
    unfinished: int
    refused: int
    errors: list[str]
    window_s: float
    window_answers: int
    answers_after_warmup: int
    latencies: Latencies
    send_lag: Latencies
    client_cpu_s: float
    server_cost_after_warmup: Cost
    next_serial: int
