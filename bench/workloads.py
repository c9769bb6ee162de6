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
MOST_STEPS = 100_000
MANY = 1_000
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


def _each(settings: Settings, server: Server, session: Session, result: WorkloadResult) -> None:
    """One run of as many steps as a run can have."""
    descriptor = descriptors.each(MOST_STEPS)
    phase = session.measure(session.runs(descriptor, 1, wait=False, connections=1, limit_s=DAG_LIMIT_S))
    result.phases.append(phase)
    seconds = phase.latencies.p50_ms / 1e3 + phase.drain_s
    result.figures["seconds_to_completed"] = seconds
    result.figures["steps_per_s"] = MOST_STEPS / seconds
    result.figures["longest_lag_s_at_most"] = server.operations.longest_lag_s()


def _many(settings: Settings, server: Server, session: Session, result: WorkloadResult) -> None:
    """A thousand runs of a hundred steps with an effect, all under way at the same time."""
    descriptor = descriptors.wide("engineering", "bench.effect")
    began = time.monotonic()
    spec = session.runs(descriptor, MANY, wait=False, connections=settings.connections, limit_s=DAG_LIMIT_S)
    result.phases.append(session.measure(spec))
    result.figures["steps_per_s"] = MANY * 100 / (time.monotonic() - began)
    result.figures["longest_lag_s_at_most"] = server.operations.longest_lag_s()


def _fairness(settings: Settings, server: Server, session: Session, result: WorkloadResult) -> None:
    """A run of a small department, alone and while a big one has a thousand runs of a hundred steps under way."""
    small = descriptors.wide("small", "bench.nap")

    def alone() -> float:
        phase = session.measure(session.runs(small, 5, wait=True, connections=1, limit_s=60), ends=False)
        result.phases.append(phase)
        return phase.latencies.p50_ms

    before = alone()
    flood = session.runs(
        descriptors.wide("big", "bench.nap"), MANY, wait=False, connections=settings.connections, limit_s=60
    )
    session.measure(flood, ends=False)
    left = MANY + 5 - server.operations.final_counts()["completed"]
    result.figures["ms_alone"], result.figures["ms_beside_1000_runs"] = before, alone()
    result.figures["runs_of_the_big_left_before"] = left
    result.figures["runs_of_the_big_left_after"] = MANY + 10 - server.operations.final_counts()["completed"]
    result.phases.append(session.measure(session.runs(small, 1, wait=True, connections=1, limit_s=120)))


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
    Workload("each-100000", "one run of 100,000 steps", _each),
    Workload("many", "1,000 runs of 100 steps at the same time", _many),
    Workload("fairness", "a small department beside one with 1,000 runs of 100 steps", _fairness),
    Workload(
        "waiting", "100,000 runs that wait, through a restart", _waiting, lambda settings: settings.waiting_runs * 2
    ),
)
