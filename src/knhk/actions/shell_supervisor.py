"""The process between the server and a program of the `shell` action: sets its limits and leaves no process behind.

Run as a script, isolated, without the package: `python -I -S shell_supervisor.py LIFELINE STATUS LIMITS PATH ARGV...`.
It starts the program and waits until that has ended or the lifeline is closed, which the server does when time is up,
and the kernel when the server has died. Then it kills whatever the program has started, also what moved to another
process group: as the subreaper of its descendants it is the parent of every orphan among them. How the program ended is
written to the file descriptor STATUS, as JSON.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Run the program to its end, and report it."""
    lifeline, status, limits = int(argv[1]), int(argv[2]), json.loads(argv[3])
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    child = os.fork()
    if not child:
        for descriptor in (lifeline, status):
            os.set_inheritable(descriptor, False)
        _become(libc, limits, argv[4], argv[5:], status)
    report = _wait(child, lifeline, woken)
    _kill_descendants(child)
    if report:
        os.write(status, json.dumps(report).encode())


def _become(libc: ctypes.CDLL, limits: dict[str, int], path: str, argv: list[str], status: int) -> None:
    """In the child: take the limits and become the program. A failure is reported in its place."""
    try:
        os.setsid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        cpu_s = limits["cpu_s"]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"], limits["memory_bytes"]))
        os.execv(path, argv)
    except BaseException as error:  # nothing else may run in the child
        with contextlib.suppress(OSError):
            os.write(status, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
    os._exit(127)


def _wait(child: int, lifeline: int, woken: int) -> dict[str, int]:
    """How the program ended; empty if the lifeline was closed before."""
    while True:
        ready, _, _ = select.select([lifeline, woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
            found = _reap(child)
            if found is not None:
                return found
        if lifeline in ready:
            return {}


def _reap(child: int) -> dict[str, int] | None:
    """Collect what has ended; how the program did, if it is among that."""
    while True:
        try:
            pid, state = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return {"signal": 0}
        if not pid:
            return None
        if pid == child:
            if os.WIFSIGNALED(state):
                return {"signal": os.WTERMSIG(state)}
            return {"exit": os.WEXITSTATUS(state)}


def _kill_descendants(child: int) -> None:
    """Kill and collect until no child is left: those of a killed process become ours."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as listed:
            return [int(pid) for pid in listed.read().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN: what stayed in its process group has been killed
        return []


if __name__ == "__main__":
    main(sys.argv)
