"""The machine and what is installed on it, for a support bundle."""

import os
import platform
import resource
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Final

import psutil

from knhk.observability.readings import memory_limit_bytes

_SYSCTL: Final = (
    *("net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog", "net.core.netdev_max_backlog"),
    *("vm.swappiness", "vm.dirty_background_ratio", "vm.dirty_ratio", "vm.overcommit_memory"),
    *("fs.file-max", "fs.nr_open"),
)
_LIMITS: Final = ("NOFILE", "NPROC", "AS", "CORE", "FSIZE")


def describe(paths: list[Path]) -> dict[str, Any]:
    """Kernel, processors, memory, the disks of these paths, limits, the kernel's settings, Python and its packages."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {
        "kernel": platform.release(),
        "system": _release(),
        "machine": platform.machine(),
        "processors": psutil.cpu_count(),
        "processors_allowed": len(os.sched_getaffinity(0)),
        "load_average": list(os.getloadavg()),
        "memory": {"total": memory.total, "available": memory.available, "limit": memory_limit_bytes()},
        "swap": {"total": swap.total, "used": swap.used},
        "booted_at_unix": psutil.boot_time(),
        "user_id": os.getuid(),
        "limits": {name: list(resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))) for name in _LIMITS},
        "sysctl": {name: _read(Path("/proc/sys") / name.replace(".", "/")) for name in _SYSCTL},
        "disks": [_disk(path) for path in paths],
        "python": {"version": sys.version, "executable": sys.executable},
        "packages": dict(sorted((one.metadata["Name"], one.version) for one in distributions() if one.metadata)),
        "variables": sorted(name for name in os.environ if name.startswith("KNHK_")),
    }


def _release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _disk(path: Path) -> dict[str, Any]:
    """The file system that a path is on, and the options that it is mounted with."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    usage = psutil.disk_usage(str(there))
    mounts = [one for one in psutil.disk_partitions(all=True) if there.resolve().is_relative_to(one.mountpoint)]
    mount = max(mounts, key=lambda one: len(one.mountpoint), default=None)
    return {
        "path": str(path),
        "exists": path.exists(),
        "total": usage.total,
        "free": usage.free,
        "file_system": mount.fstype if mount is not None else None,
        "options": mount.opts if mount is not None else None,
    }


def process(pid: int) -> dict[str, Any]:
    """What the kernel says of a process, for one that does not answer. Raises psutil.Error if there is none."""
    found = psutil.Process(pid)
    with found.oneshot():
        return {
            "pid": pid,
            "status": found.status(),
            "started_at_unix": found.create_time(),
            "resident_bytes": found.memory_info().rss,
            "cpu_seconds": sum(found.cpu_times()[:2]),
            "threads": found.num_threads(),
            "open_files": found.num_fds(),
            "waits_in": _read(Path(f"/proc/{pid}/wchan")),
            "kernel_stack": _read(Path(f"/proc/{pid}/stack")),
        }


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
