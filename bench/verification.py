"""Checks every receipt of a stopped server, offline, with the product's own command."""

import subprocess
import time
from pathlib import Path

import msgspec

from bench.server_config import environment
from bench.settings import BenchFailure, Settings

VERIFY_LIMIT_S = 900.0


class Verdict(msgspec.Struct):
    """What is read of the answer of `knhk verify`."""

    valid: bool
    total_count: int


class Verified(msgspec.Struct, frozen=True):
    """All receipts are valid; how many, and how long it took to say so."""

    receipts: int
    seconds: float


def verify(settings: Settings, config: Path, data: Path, *, runs: int) -> Verified:
    """Verify the receipts of a server of this configuration; there must be at least one for each of `runs`."""
    command = [part.format(config=config, data=data) for part in settings.verify_command]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, env=environment(), timeout=VERIFY_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BenchFailure(f"the receipts were not verified within {VERIFY_LIMIT_S:.0f} s") from None
    try:
        verdict = msgspec.json.decode(done.stdout, type=Verdict)
    except msgspec.DecodeError as problem:
        said = (done.stdout[-500:] + done.stderr[-1500:]).decode(errors="replace")
        raise BenchFailure(f"verify gave no verdict (exit code {done.returncode}, {problem}):\n{said}") from None
    if done.returncode != 0 or not verdict.valid:
        raise BenchFailure(f"the receipts are not valid: {done.stdout[:500].decode(errors='replace')}")
    if verdict.total_count < runs:
        raise BenchFailure(f"{verdict.total_count} receipts for {runs} runs: some are missing")
    return Verified(verdict.total_count, time.monotonic() - began)
