"""What a process has used up so far: CPU time and bytes sent to the disk, with all of its descendants."""

import msgspec
import psutil


class Cost(msgspec.Struct, frozen=True):
    """Counters that only grow; the difference of two is the cost of what happened between them."""

    cpu_s: float = 0.0
    write_bytes: int = 0

    def since(self, earlier: "Cost") -> "Cost":
        """What was used after `earlier`."""
        return Cost(self.cpu_s - earlier.cpu_s, self.write_bytes - earlier.write_bytes)


def sample(pid: int) -> Cost:
    """Read the counters (`utime`, `stime` of /proc/PID/stat and `write_bytes` of /proc/PID/io)."""
    cpu_s, write_bytes = 0.0, 0
    for process in _family(pid):
        try:
            times = process.cpu_times()
            # Children that have ended count too, or a pool's restarted worker would look free.
            cpu_s += times.user + times.system + times.children_user + times.children_system
            write_bytes += process.io_counters().write_bytes
        except psutil.NoSuchProcess:
            continue
    return Cost(cpu_s, write_bytes)


def resident_bytes(pid: int) -> int:
    """Memory that the process and its descendants hold (RSS)."""
    total = 0
    for process in _family(pid):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
