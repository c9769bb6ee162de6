"""What was measured: plain records, which are also the JSON report."""

import msgspec

from bench.machine import Machine
from bench.percentiles import Latencies


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of load: `measure` says whether an answer meant `submit` (durably accepted) or `completed`.

    Costs are per workflow and include everything until the last run had ended. `lag` is how late the client itself
    sent. `drain_s` is how long runs went on after the last answer. `fsyncs` is None if the server does not count them.
    """

    measure: str
    runs: int
    per_s: float
    latencies: Latencies
    lag: Latencies
    refused: int
    server_cpu_us: float
    client_cpu_us: float
    write_bytes: float
    fsyncs: float | None
    drain_s: float


class WorkloadResult(msgspec.Struct, kw_only=True):
    """All of one workload; it counts only if there are no `problems`. `figures` are what fits no phase."""

    name: str
    cpu_probe_ms: float = 0.0
    start_s: float = 0.0
    stop_s: float = 0.0
    phases: list[Phase] = []
    figures: dict[str, float] = {}
    runs: int = 0
    receipts_verified: int = 0
    verify_s: float = 0.0
    flame_graph: str | None = None
    problems: list[str] = []


class Report(msgspec.Struct, kw_only=True):
    """One call of the harness."""

    machine: Machine
    settings: dict[str, float]
    workloads: list[WorkloadResult]

    @property
    def failed(self) -> bool:
        """Whether any workload had a problem."""
        return any(workload.problems for workload in self.workloads)
