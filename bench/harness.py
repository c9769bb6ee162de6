"""Runs workloads one after another, each on a fresh server and directory, and verifies what each left behind."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.machine import cpu_probe_ms, describe
from bench.results import Report, WorkloadResult
from bench.server import Server, profiler_available
from bench.server_config import drop_tables
from bench.session import Session
from bench.settings import BenchFailure, Settings
from bench.verification import verify
from bench.workloads import Workload

Say = Callable[[str], None]


def run(settings: Settings, workloads: Iterable[Workload], say: Say) -> Report:
    """Measure; a workload with a problem does not keep the others from being measured."""
    settings.directory.mkdir(parents=True, exist_ok=True)
    machine = describe(settings.directory)
    if machine.filesystem in ("tmpfs", "ramfs"):
        say(f"{settings.directory} is not on a disk: a sync costs nothing there; choose another with --dir")
    report = Report(machine=machine, settings=settings.describe(), workloads=[])
    for workload in workloads:
        say(f"{workload.name}: {workload.about}")
        result = run_workload(settings, workload, say)
        report.workloads.append(result)
        for problem in result.problems:
            say(f"{workload.name} FAILED: {problem}")
    return report


def run_workload(settings: Settings, workload: Workload, say: Say) -> WorkloadResult:
    """One workload from an empty directory to verified receipts."""
    result = WorkloadResult(name=workload.name, cpu_probe_ms=cpu_probe_ms())
    profile = _profile_path(settings, workload, say)
    home = Path(tempfile.mkdtemp(prefix=f"knhk-bench-{workload.name}-", dir=settings.directory))
    server = Server(settings, home, room_for=workload.room_for(settings), profile=profile)
    try:
        with server:
            result.start_s = server.start()
            session = Session(settings, server)
            try:
                workload.measure(settings, server, session, result)
            finally:
                result.problems += session.problems
                result.runs = session.accepted
            result.stop_s = server.stop()
        verified = verify(settings, server.config_file, server.data, runs=result.runs)
        result.receipts_verified, result.verify_s = verified.receipts, verified.seconds
        if profile is not None:
            result.flame_graph = str(profile)
    except (BenchFailure, OSError) as problem:
        result.problems.append(str(problem))
    finally:
        if settings.keep:
            say(f"{workload.name}: the server's files are kept in {home}")
        else:
            asyncio.run(drop_tables(server.config))
            shutil.rmtree(home, ignore_errors=True)
    return result


def _profile_path(settings: Settings, workload: Workload, say: Say) -> Path | None:
    if settings.profile is None:
        return None
    if not profiler_available():
        say("py-spy is not on the PATH: no flame graph (pip install py-spy)")
        return None
    settings.profile.mkdir(parents=True, exist_ok=True)
    return settings.profile.resolve() / f"bench-{workload.name}.svg"
