"""The workloads: what each submits, and how it is measured."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from bench import descriptors
from bench.cost import resident_bytes
from bench.results import WorkloadResult
from bench.server import Server
from bench.session import Session
from bench.settings import BenchFailure, Settings

DAG_REPEATS = 3
DAG_LIMIT_S = 120.0
WAITING_LIMIT_S = 600.0
PARK_LIMIT_S = 180.0
MB = 1e6

Measure = Callable[[Settings, Server, Session, WorkloadResult], None]


class Workload(msgspec.Struct, frozen=True):
    """`measure` fills in the result; `room_for` is how many runs are under way at once, if that is many."""

    name: str
    about: str
    measure: Measure
    room_for: Callable[[Settings], int] = lambda settings: 0


def _throughput(
    descriptor: str, rate: int, settings: Settings, server: Server, session: Session, result: WorkloadResult
) -> None:
    """Once with the answer at the end of the run, once with the answer at the commit of the submit."""
    for wait in (True, False):
        result.phases.append(session.load(descriptor, wait=wait, rate=rate))


def _dag(settings: Settings, server: Server, session: Session, result: WorkloadResult) -> None:
    """One at a time, so that the time is that of one big DAG on an idle server."""
    descriptor = descriptors.layered(settings.dag_steps)
    phase = session.measure(session.runs(descriptor, DAG_REPEATS, wait=True, connections=1, limit_s=DAG_LIMIT_S))
    result.phases.append(phase)
    seconds = phase.latencies.p50_ms / 1e3
    result.figures["seconds_to_completed"] = seconds
    result.figures["steps_per_s"] = settings.dag_steps / seconds if seconds else 0.0


def _waiting(settings: Settings, server: Server, session: Session, result: WorkloadResult) -> None:
    """Park many runs, stop, start again, and see that every one is still there."""
    count, figures = settings.waiting_runs, result.figures
    figures["rss_before_mb"] = resident_bytes(server.pid) / MB
    spec = session.runs(
        descriptors.waiting(), count, wait=False, connections=settings.connections, limit_s=WAITING_LIMIT_S
    )
    result.phases.append(session.measure(spec, ends=False))
    figures["seconds_to_parked"] = _await_parked(server, session.accepted)
    figures["rss_parked_mb"] = resident_bytes(server.pid) / MB
    figures["bytes_per_parked_run"] = (figures["rss_parked_mb"] - figures["rss_before_mb"]) * MB / count
    figures["seconds_to_stop"] = server.stop()
    figures["seconds_to_ready_again"] = server.start()
    figures["rss_after_restart_mb"] = resident_bytes(server.pid) / MB
    _await_parked(server, session.accepted)
    if session.accepted != count:
        raise BenchFailure(f"{session.accepted} runs were accepted, not {count}")


def _await_parked(server: Server, expected: int) -> float:
    """Wait until exactly `expected` runs wait; returns the seconds that it took."""
    began = time.monotonic()
    while True:
        # `waiting_on` may be left out of a listing; a run of this workload that is running has nothing to do but wait.
        parked = sum(1 for run in server.operations.runs("running") if run.get("waiting_on", True))
        if parked == expected:
            return time.monotonic() - began
        if time.monotonic() - began > PARK_LIMIT_S:
            raise BenchFailure(f"{parked} runs are waiting, not {expected}")
        time.sleep(1)


def _closed(name: str, about: str, descriptor: str) -> Workload:
    return Workload(name, about, partial(_throughput, descriptor, 0))


def _open(rate: int) -> Workload:
    about = f"the two steps of `two`, {rate} a second come what may"
    return Workload(f"open-{rate}", about, partial(_throughput, descriptors.two(), rate))


WORKLOADS: Final = (
    _closed("two", "two pure steps in a row", descriptors.two()),
    _closed("two-effect", "two steps with an effect: each durable before the next", descriptors.two_effect()),
    _closed("ten", "ten steps, fanning out and in twice", descriptors.ten()),
    _open(1000),
    _open(1850),
    Workload("dag-10000", "one DAG of 10,000 steps", _dag),
    Workload(
        "waiting", "100,000 runs that wait, through a restart", _waiting, lambda settings: settings.waiting_runs * 2
    ),
)
