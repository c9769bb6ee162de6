"""One running server and what was asked of it: puts load on, waits until all of it has ended, and counts.

Invariant: `accepted` is the number of runs the server took responsibility for; as many must end, all of them completed.
"""

import subprocess
import sys
import time

import msgspec

from bench.cost import Cost, sample
from bench.descriptors import FIRST_SERIAL
from bench.load_spec import LoadResult, LoadSpec
from bench.results import Phase
from bench.server import Server
from bench.server_config import HOST, environment
from bench.settings import BenchFailure, Settings

DRAIN_LIMIT_S = 120.0
DRAIN_LIMIT_AFTER_ERRORS_S = 5.0
DRAIN_POLL_S = 0.05
COUNT_CAP = 2_000_000
OPEN_LOOP_CONNECTIONS = 256


class Session:
    """Load on one server; serial numbers go on from phase to phase, so that no two submits are alike."""

    def __init__(self, settings: Settings, server: Server) -> None:
        self._settings = settings
        self._server = server
        self._next_serial = FIRST_SERIAL
        self.accepted = 0
        self.problems: list[str] = []

    def load(self, descriptor: str, *, wait: bool, rate: int = 0) -> Phase:
        """Load for the time given by the settings; all runs end before this returns."""
        spec = self._spec(
            descriptor,
            wait=wait,
            rate=rate,
            connections=max(self._settings.connections, OPEN_LOOP_CONNECTIONS) if rate else self._settings.connections,
            warmup_s=self._settings.warmup_s,
            seconds=self._settings.seconds,
        )
        return self.measure(spec)

    def runs(self, descriptor: str, count: int, *, wait: bool, connections: int, limit_s: float) -> LoadSpec:
        """A load of exactly `count` runs."""
        return self._spec(
            descriptor, wait=wait, connections=connections, warmup_s=0.0, seconds=limit_s, max_count=count
        )

    def _spec(
        self,
        descriptor: str,
        *,
        wait: bool,
        connections: int,
        warmup_s: float,
        seconds: float,
        rate: int = 0,
        max_count: int = 0,
    ) -> LoadSpec:
        return LoadSpec(
            host=HOST,
            port=self._server.ports.api,
            descriptor=descriptor,
            wait=wait,
            connections=connections,
            warmup_s=warmup_s,
            seconds=seconds,
            max_count=max_count or (0 if rate else COUNT_CAP),
            rate=rate,
            first_serial=self._next_serial,
            server_pid=self._server.pid,
        )

    def measure(self, spec: LoadSpec, *, ends: bool = True) -> Phase:
        """Put the load on and work out what it cost; `ends` is False for runs that are not meant to end."""
        fsyncs_before = self._server.operations.metrics().fsyncs or 0
        result = self._run_client(spec)
        began = time.monotonic()
        self._check(spec, result)
        if ends:
            self._drain()
        drain_s = time.monotonic() - began
        cost = sample(self._server.pid).since(result.server_cost_after_warmup)
        fsyncs_after = self._server.operations.metrics().fsyncs
        return _phase(spec, result, cost, None if fsyncs_after is None else fsyncs_after - fsyncs_before, drain_s)

    def _run_client(self, spec: LoadSpec) -> LoadResult:
        limit_s = spec.warmup_s + spec.seconds + spec.answer_timeout_s + 30
        try:
            done = subprocess.run(
                [sys.executable, "-m", "bench.load_process"],
                input=msgspec.json.encode(spec),
                capture_output=True,
                env=environment(),
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BenchFailure(f"the load process had not ended after {limit_s:.0f} s") from None
        if done.returncode != 0:
            raise BenchFailure(f"the load process failed:\n{done.stderr[-1500:].decode(errors='replace')}")
        return msgspec.json.decode(done.stdout, type=LoadResult)

    def _check(self, spec: LoadSpec, result: LoadResult) -> None:
        self._next_serial = result.next_serial
        self.accepted += result.accepted
        self.problems += result.errors
        if result.failed:
            self.problems.append(f"{result.failed} runs ended otherwise than completed")
        if result.unfinished:
            self.problems.append(f"{result.unfinished} runs had not ended when their answer came")
        if spec.rate and result.refused:
            self.problems.append(f"{result.refused} of {result.sent} submits were refused: the rate was not carried")
        if not result.accepted:
            self.problems.append("nothing was accepted")

    def _drain(self) -> None:
        """Wait until as many runs have completed as were accepted."""
        limit_s = DRAIN_LIMIT_AFTER_ERRORS_S if self.problems else DRAIN_LIMIT_S
        give_up = time.monotonic() + limit_s
        while True:
            counts = self._server.operations.final_counts()
            if counts["completed"] == self.accepted and sum(counts.values()) == self.accepted:
                return
            if time.monotonic() > give_up or sum(counts.values()) > self.accepted:
                self.problems.append(f"{self.accepted} runs were accepted, but the server counts {counts}")
                return
            time.sleep(DRAIN_POLL_S)


def _phase(spec: LoadSpec, result: LoadResult, cost: Cost, fsyncs: int | None, drain_s: float) -> Phase:
    counted = max(1, result.answers_after_warmup)
    return Phase(
        measure="completed" if spec.wait else "submit",
        runs=result.accepted,
        per_s=result.window_answers / result.window_s if result.window_s else 0.0,
        latencies=result.latencies,
        lag=result.send_lag,
        refused=result.refused,
        server_cpu_us=cost.cpu_s * 1e6 / counted,
        client_cpu_us=result.client_cpu_s * 1e6 / counted,
        write_bytes=cost.write_bytes / counted,
        fsyncs=None if fsyncs is None else fsyncs / max(1, result.accepted),
        drain_s=drain_s,
    )
