"""What the harness was asked to do, and what it was asked to measure."""

import sys
from pathlib import Path

import msgspec

REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Set by the command line. The commands are templates: `{config}` and `{data}` are filled in.

    `directory` holds the servers' data; `profile` is where flame graphs go.
    """

    directory: Path = Path("/var/tmp")
    seconds: float = 10.0
    warmup_s: float = 2.0
    connections: int = 64
    dag_steps: int = 10_000
    waiting_runs: int = 100_000
    profile: Path | None = None
    keep: bool = False
    base_config: Path | None = None
    serve_command: tuple[str, ...] = (sys.executable, "-m", "knhk", "serve", "--config", "{config}")
    verify_command: tuple[str, ...] = (
        *(sys.executable, "-m", "knhk", "verify", "--config", "{config}"),
        *("--full", "--output", "json"),
    )

    def describe(self) -> dict[str, float]:
        """The settings that change results, for the report."""
        return {
            "seconds": self.seconds,
            "warmup_s": self.warmup_s,
            "connections": self.connections,
            "dag_steps": self.dag_steps,
            "waiting_runs": self.waiting_runs,
        }


class BenchFailure(Exception):
    """The workload cannot be measured, or what it measured would not count."""
