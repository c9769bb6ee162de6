"""The command `python -m bench`: see bench/README.md. Exit code 1 means that a workload failed or lost something."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from bench.harness import run
from bench.report import show, show_comparison
from bench.results import Report
from bench.settings import Settings
from bench.workloads import WORKLOADS, Workload

MAX_SECONDS = 600.0
MAX_CONNECTIONS = 4096
WIDTH_WHEN_PIPED = 170


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure a KNHK server and verify its receipts."
    )
    names = ", ".join(workload.name for workload in WORKLOADS)
    parser.add_argument("workloads", nargs="*", help=f"which ones; all if none is named ({names})")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each stretch of load lasts (10)")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds of load before it (2)")
    parser.add_argument("--connections", type=int, default=64, help="connections of the closed loops (64)")
    parser.add_argument("--dag-steps", type=int, default=10_000, help="size of the big DAG (10000)")
    parser.add_argument("--waiting-runs", type=int, default=100_000, help="how many runs wait (100000)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the data go: a real disk (/var/tmp)")
    parser.add_argument("--config", type=Path, help="a server configuration to start from")
    parser.add_argument(
        "--profile",
        type=Path,
        nargs="?",
        const=Path("bench-profiles"),
        metavar="DIR",
        help="run the server under py-spy and put flame graphs there (bench-profiles)",
    )
    parser.add_argument("--output", choices=("table", "json"), default="table", help="what is printed")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the JSON report to a file")
    parser.add_argument("--compare", type=Path, metavar="OTHER.json", help="print ratios to an earlier JSON report")
    parser.add_argument("--keep", action="store_true", help="keep the servers' directories")
    return parser


def _chosen(parser: argparse.ArgumentParser, names: Sequence[str]) -> list[Workload]:
    known = {workload.name: workload for workload in WORKLOADS}
    for name in names:
        if name not in known:
            parser.error(f"no workload {name!r}; there are: {', '.join(known)}")
    return [known[name] for name in names] if names else list(WORKLOADS)


def _settings(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Settings:
    if not 0 < given.seconds <= MAX_SECONDS or not 0 <= given.warmup <= MAX_SECONDS:
        parser.error(f"--seconds and --warmup are at most {MAX_SECONDS:.0f}")
    if not 0 < given.connections <= MAX_CONNECTIONS:
        parser.error(f"--connections is from 1 to {MAX_CONNECTIONS}")
    if not 0 < given.dag_steps <= 100_000 or not 0 < given.waiting_runs <= 1_000_000:
        parser.error("--dag-steps is at most 100000, --waiting-runs at most 1000000")
    return Settings(
        directory=given.dir.resolve(),
        seconds=given.seconds,
        warmup_s=given.warmup,
        connections=given.connections,
        dag_steps=given.dag_steps,
        waiting_runs=given.waiting_runs,
        profile=given.profile,
        keep=given.keep,
        base_config=given.config,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and report."""
    parser = _parser()
    given = parser.parse_args(arguments)
    settings, workloads = _settings(parser, given), _chosen(parser, given.workloads)
    # Read before measuring: a mistyped name should not cost ten minutes.
    other = msgspec.json.decode(given.compare.read_bytes(), type=Report) if given.compare else None
    remarks = Console(stderr=True, highlight=False)
    report = run(settings, workloads, lambda text: remarks.print(text, markup=False))
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
    if given.save:
        given.save.write_bytes(encoded)
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WHEN_PIPED)
    if given.output == "json":
        sys.stdout.write(encoded.decode() + "\n")
        console = remarks
    else:
        show(report, console)
    if other is not None:
        show_comparison(report, other, console)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
