"""Facts about the machine, to tell whether two reports can be compared, and probes of how fast it is just now."""

import hashlib
import os
import platform
import time
from pathlib import Path

import msgspec
import psutil

from bench.percentiles import Latencies, summarise

FSYNC_PROBES = 200
FSYNC_PROBE_BYTES = 4096
_CPU_PROBES = 5


class Machine(msgspec.Struct, frozen=True):
    """Where the figures were taken."""

    cores: int
    python: str
    system: str
    memory_gb: float
    filesystem: str
    fsync: Latencies
    cpu_probe_ms: float


def describe(directory: Path) -> Machine:
    """Look around; `directory` is where the servers will keep their data."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.machine()}",
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        filesystem=filesystem_of(directory),
        fsync=fsync_probe(directory),
        cpu_probe_ms=cpu_probe_ms(),
    )


def filesystem_of(directory: Path) -> str:
    """The type of the file system: on tmpfs a sync costs nothing and the figures say nothing."""
    place = directory.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if place.is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else "unknown"


def fsync_probe(directory: Path) -> Latencies:
    """Append a page and sync it, again and again, as a journal does."""
    file = directory / "fsync-probe"
    page = os.urandom(FSYNC_PROBE_BYTES)
    took_ns: list[int] = []
    with file.open("wb", buffering=0) as out:
        for _ in range(FSYNC_PROBES):
            out.write(page)
            began = time.monotonic_ns()
            os.fdatasync(out.fileno())
            took_ns.append(time.monotonic_ns() - began)
    file.unlink()
    return summarise(took_ns)


def cpu_probe_ms() -> float:
    """The best of a few times of a fixed piece of work; it tells a machine's slow state from a slow server."""
    best_ns = min(_work_ns() for _ in range(_CPU_PROBES))
    return best_ns / 1e6


def _work_ns() -> int:
    began = time.perf_counter_ns()
    digest = b"\0" * 32
    for _ in range(20_000):
        digest = hashlib.sha256(digest).digest()
    return time.perf_counter_ns() - began
