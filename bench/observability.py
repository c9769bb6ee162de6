"""What it costs to be watched, `python -m bench.observability`: CPU and throughput without and with metrics and OTLP.

Each variant gets a fresh node without servers, in this process, and the same runs of two pure steps, every descriptor
another one. Variants are taken in turn, several rounds of it, so that the machine's moods meet all of them alike; the
collector is a process of its own and throws away what it gets.
"""

import argparse
import asyncio
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvloop
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.server_config import HOST, environment
from bench.settings import BenchFailure
from knhk.bootstrap import Node, observability
from knhk.bootstrap.monitoring import monitor_of
from knhk.bootstrap.serving import tune_for_throughput
from knhk.config import Config
from knhk.engine.control import Submission
from knhk.observability import logs
from knhk.observability.exporter import Exporter
from knhk.ports.duty import Duty

AT_ONCE: Final = 64
DEAD: Final = "http://127.0.0.1:9"
"""Nobody listens on the discard port."""
DESCRIPTOR: Final = """\
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: watched-{number}, department: bench}}
spec:
  steps:
    - {{name: first, action: process, params: {{output: {{number: {number}}}}}}}
    - {{name: second, action: process, depends_on: [first], params: {{output: "${{{{ steps.first.output }}}}"}}}}
"""


class Variant(NamedTuple):
    """Who watches: nobody at all if not `measured`; a collector at `endpoint`, if that is not empty."""

    name: str
    measured: bool
    endpoint: str = ""


class Watched(NamedTuple):
    """What one stretch of runs cost: CPU of the process in us a run, runs a second, spans that arrived a run."""

    cpu_us: float
    per_s: float
    spans: float


def _variants(collector: "Collector") -> list[Variant]:
    return [
        Variant("nothing", measured=False),
        Variant("metrics and service level", measured=True),
        Variant("... and every run traced, by gRPC", True, f"grpc://{HOST}:{collector.grpc_port}"),
        Variant("... and every run traced, by HTTP", True, f"http://{HOST}:{collector.http_port}"),
        Variant("... and the collector is dead", True, DEAD),
    ]


class Collector:
    """`bench.collector` as a process."""

    def __enter__(self) -> "Collector":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.collector"], stdout=subprocess.PIPE, env=environment(), text=True
        )
        assert self._process.stdout is not None
        ports = self._process.stdout.readline().split()
        if len(ports) != 2:
            raise BenchFailure("the collector did not start")
        self.grpc_port, self.http_port = map(int, ports)
        return self

    def __exit__(self, *_raised: object) -> None:
        self._process.kill()
        self._process.wait(10)


async def _runs(node: Node, first: int, count: int) -> None:
    """Submit so many runs, a bounded number at once, and wait until all have completed."""
    numbers = iter(range(first, first + count))

    async def client() -> None:
        for number in numbers:
            body = DESCRIPTOR.format(number=number).encode()
            answer = await node.engine.control.submit(Submission(body), wait_s=60.0)
            if answer.state != "completed":
                raise BenchFailure(f"a run is {answer.state}: {answer.failure}")

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))


async def _stretch(config: Config, variant: Variant, warm_up: int, count: int) -> Watched:
    node = Node(config)
    duties: list[Duty] = []
    if variant.measured:
        monitor_of(node)
        duties = observability.duties(node)
    else:
        node.folds.clear()
    await node.start()
    for duty in duties:
        await duty.start()
    await _runs(node, 0, warm_up)
    gc.unfreeze()
    tune_for_throughput()  # as a server does it
    cpu, began = time.process_time(), time.perf_counter()
    await _runs(node, warm_up, count)
    took_s = time.perf_counter() - began
    for duty in reversed(duties):  # what was queued is sent now, and counts
        await duty.stop()
    cpu = time.process_time() - cpu
    sent = sum(_spans_sent(duty) for duty in duties if isinstance(duty, Exporter))
    await node.stop()
    return Watched(cpu * 1e6 / count, count / took_s, sent / (count + warm_up))


def _spans_sent(exporter: Exporter) -> float:
    samples = [sample for family in exporter.families() for sample in family.samples]
    return sum(
        one.value for one in samples if one.name == "knhk_telemetry_sent_total" and one.labels == {"signal": "traces"}
    )


def _config(data: Path, endpoint: str) -> Config:
    given: dict[str, Any] = {"persistence": {"path": data / "db", "key_path": data / "keys"}}
    return Config.model_validate(given | {"observability": {"endpoint": endpoint, "sampling_rate": 1.0}})


def measure(rounds: int, count: int, directory: Path, remarks: Console) -> dict[str, list[Watched]]:
    """So many stretches of `count` runs for each variant."""
    results: dict[str, list[Watched]] = {}
    with Collector() as collector, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        variants = _variants(collector)
        turns = [(variant, number) for number in range(rounds + 1) for variant in variants]
        for variant, number in track(turns, "being watched", console=remarks, transient=True):
            with tempfile.TemporaryDirectory(prefix="knhk-bench-watched-", dir=directory) as made:
                config = _config(Path(made), variant.endpoint)
                watched = runner.run(_stretch(config, variant, max(1, count // 8), count))
            if number:  # the first round loads libraries
                results.setdefault(variant.name, []).append(watched)
    return results


def _show(results: dict[str, list[Watched]], console: Console) -> None:
    table = Table(
        "watched by", "CPU us a run", "against nothing", "pairs", "runs/s", "against nothing", "pairs", "spans"
    )
    alone = next(iter(results.values()))
    for name, stretches in results.items():
        cells: list[str] = []
        for figure in ("cpu_us", "per_s"):
            mine, bare = ([float(getattr(one, figure)) for one in those] for those in (stretches, alone))
            ratios = sorted(one / nothing for one, nothing in zip(mine, bare, strict=True))
            middle, least, most = (
                f"{(one - 1) * 100:+.1f}" for one in (statistics.median(ratios), ratios[0], ratios[-1])
            )
            cells += [f"{statistics.median(mine):.0f}", f"{middle} %", f"{least} to {most}"]
        table.add_row(name, *cells, f"{statistics.mean(one.spans for one in stretches):.1f}")
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.observability", description="What it costs to be watched.")
    parser.add_argument("--rounds", type=int, default=7, help="how often each variant has its turn (7)")
    parser.add_argument("--runs", type=int, default=4_000, help="runs in each stretch (4000)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the data go: a real disk (/var/tmp)")
    given = parser.parse_args(arguments)
    if not 0 < given.rounds <= 100 or not 0 < given.runs <= 100_000:
        parser.error("--rounds is at most 100, --runs at most 100000")
    logs.set_level("error")  # that the dead collector is dead need not be said in each round
    try:
        results = measure(given.rounds, given.runs, given.dir, Console(stderr=True))
    except BenchFailure as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    _show(results, Console(width=None if sys.stdout.isatty() else 130))
    return 0


if __name__ == "__main__":
    sys.exit(main())
