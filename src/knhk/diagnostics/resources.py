"""What the server has, what it uses of it, and what it is running short of."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from knhk.observability.readings import ABSENT, OK, memory_limit_bytes

_HIGH: Final = 0.8
_CRITICAL: Final = 0.95
_LAG_S: Final = 0.25
_COMMIT_S: Final = 0.1
_LAG_BLOCKS: Final = 200
_MEASURE_S: Final = 0.5


class Finding(msgspec.Struct, frozen=True):
    """Something to see to. `level` is `warning` or `critical`."""

    level: str
    what: str
    advice: str


def of_process() -> dict[str, Any]:
    """The process and its machine. Takes half a second, to measure the CPU."""
    process = psutil.Process()
    cores = len(os.sched_getaffinity(0))
    process.cpu_percent()
    machine_percent = psutil.cpu_percent(_MEASURE_S)
    with process.oneshot():
        memory = process.memory_info()
        limit = process.rlimit(psutil.RLIMIT_NOFILE)[0]
        found = {
            "pid": process.pid,
            "cpu_cores_used": round(process.cpu_percent() / 100, 3),
            "cpu_cores": cores,
            "resident_bytes": memory.rss,
            "memory_limit_bytes": memory_limit_bytes(),
            "open_files": process.num_fds(),
            "open_files_limit": limit,
            "threads": process.num_threads(),
        }
    available, load = psutil.virtual_memory(), os.getloadavg()
    return found | {
        "machine": {
            "cpu_percent": machine_percent,
            "load_average": [round(one, 2) for one in load],
            "memory_bytes": available.total,
            "memory_available_bytes": available.available,
            "swap_used_bytes": psutil.swap_memory().used,
        }
    }


def of_disk(path: Path) -> dict[str, Any]:
    """Room on the disk that a path is on, or will be."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    usage = psutil.disk_usage(str(there))
    return {"path": str(path), "total_bytes": usage.total, "free_bytes": usage.free}


def findings(resources: Mapping[str, Any]) -> list[Finding]:
    """What somebody should see to, worst first."""
    found = [*_of_use(resources), *_of_engine(resources.get("engine") or {})]
    for room, text in (resources.get("checks") or {}).items():
        if text not in (OK, ABSENT):
            found.append(Finding("critical", f"{room}: {text}", "See `knhk debug tasks` and the log."))
    return sorted(found, key=lambda one: one.level)


def _of_use(resources: Mapping[str, Any]) -> list[Finding]:
    process = resources.get("process") or {}
    found = [
        _use("memory", process.get("resident_bytes"), process.get("memory_limit_bytes"), _MEMORY),
        _use("CPU", process.get("cpu_cores_used"), process.get("cpu_cores"), _CPU),
        _use("open files", process.get("open_files"), process.get("open_files_limit"), _FILES),
    ]
    for disk in resources.get("disks") or ():
        used = disk["total_bytes"] - disk["free_bytes"]
        found.append(_use(f"the disk of {disk['path']}", used, disk["total_bytes"], _DISK))
    return [one for one in found if one is not None]


def _of_engine(engine: Mapping[str, Any]) -> list[Finding]:
    found = [
        _use("workflow slots", engine.get("active"), engine.get("max_active"), _SLOTS),
        _use("the queue of workflows", engine.get("queued"), engine.get("max_queued"), _QUEUE),
        _use("places for steps", engine.get("steps_running"), engine.get("max_steps_running"), _STEPS),
    ]
    if (lag_s := engine.get("loop_lag_s") or 0.0) > _LAG_S:
        found.append(Finding("warning", f"the event loop was {lag_s:.2f} s late in the last 30 s", _LOOP))
    if (commit_s := engine.get("commit_mean_s") or 0.0) > _COMMIT_S:
        found.append(Finding("warning", f"a commit takes {commit_s * 1e3:.0f} ms on average", _COMMIT))
    if (lag := engine.get("projection_lag_blocks") or 0) > _LAG_BLOCKS:
        found.append(Finding("warning", f"lists and metrics are {lag} blocks behind", _PROJECTION))
    return [one for one in found if one is not None]


def _use(what: str, used: float | None, most: float | None, advice: str) -> Finding | None:
    if used is None or not most or used / most < _HIGH:
        return None
    share = used / most
    return Finding("critical" if share >= _CRITICAL else "warning", f"{what}: {share:.0%} used", advice)


_MEMORY: Final = "Raise the container's limit, or lower platform.max_concurrent_workflows; see `knhk debug heap-dump`."
_CPU: Final = "See `knhk profile cpu` for what uses it; one process uses little more than one core: add replicas."
_FILES: Final = "Raise the limit (LimitNOFILE= in systemd, ulimit -n)."
_DISK: Final = "Enlarge the volume, or lower persistence.retention_days."
_SLOTS: Final = "Runs wait for a slot: raise platform.max_concurrent_workflows if CPU and memory allow."
_QUEUE: Final = "Submissions will be refused with 429: raise platform.max_queued_workflows, or add replicas."
_STEPS: Final = "Steps wait for a place: raise platform.max_concurrent_steps if what they call can take more."
_LOOP: Final = "An action blocks the event loop, or the CPU is short: see the log for `the event loop is blocked`."
_COMMIT: Final = "The disk is slow to sync: use a faster volume, and see knhk_store_fsync_seconds."
_PROJECTION: Final = "They catch up when there is CPU left; runs are not affected."
