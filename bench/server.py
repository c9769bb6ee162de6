"""Starts and stops the server under test: its own process, its own data directory, its own ports.

Only processes that were started here are ever signalled.
"""

import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil
import yaml

from bench.operations import Operations
from bench.server_config import configuration, environment, free_ports, merged
from bench.settings import BenchFailure, Settings

START_LIMIT_S = 300.0
STOP_LIMIT_S = 180.0
POLL_S = 0.01


class Server:
    """A server on `home` (configuration, data, log). As a context manager it never leaves the process behind."""

    def __init__(self, settings: Settings, home: Path, *, room_for: int = 0, profile: Path | None = None) -> None:
        self._settings = settings
        self._profile = profile
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.data = home / "data"
        self._log_file = home / "server.log"
        self.config_file = home / "config.yaml"
        self.ports = free_ports()
        needed = configuration(self.data, self.ports, room_for=room_for)
        self.config = merged(settings.base_config, needed)
        self.config_file.write_text(yaml.safe_dump(self.config), encoding="utf-8")
        self.operations = Operations(self.ports)

    def start(self) -> float:
        """Start the process; returns the seconds until /ready said yes."""
        command = [part.format(config=self.config_file) for part in self._settings.serve_command]
        if self._profile is not None:
            command = ["py-spy", "record", "--output", str(self._profile), "--", *command]
        self._log = self._log_file.open("ab")
        began = time.monotonic()
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=environment()
        )
        while not self.operations.is_ready():
            if self._process.poll() is not None:
                raise BenchFailure(f"the server ended at its start:\n{self.log_tail()}")
            if time.monotonic() - began > START_LIMIT_S:
                raise BenchFailure(f"the server was not ready after {START_LIMIT_S:.0f} s:\n{self.log_tail()}")
            time.sleep(POLL_S)
        return time.monotonic() - began

    @property
    def pid(self) -> int:
        """The server's process; under the profiler that is the profiler's child."""
        if self._process is None:
            raise BenchFailure("the server is not running")
        if self._profile is None:
            return self._process.pid
        children = psutil.Process(self._process.pid).children()
        if not children:
            raise BenchFailure(f"py-spy did not start the server:\n{self.log_tail()}")
        return int(children[0].pid)

    def stop(self) -> float:
        """Stop gracefully; returns the seconds until the process had ended. Not stopping is a failure."""
        if self._process is None:
            raise BenchFailure("the server is not running")
        began = time.monotonic()
        self.operations.shut_down()
        try:
            code = self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise BenchFailure(f"the server had not stopped {STOP_LIMIT_S:.0f} s after /shutdown") from None
        took = time.monotonic() - began
        self._forget()
        if code != 0:
            raise BenchFailure(f"the server ended with exit code {code}:\n{self.log_tail()}")
        return took

    def log_tail(self) -> str:
        """The last lines that the server wrote."""
        text = self._log_file.read_text(encoding="utf-8", errors="replace") if self._log_file.exists() else ""
        return "\n".join(text.splitlines()[-15:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            _end(self._process)
            self._forget()

    def _forget(self) -> None:
        self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours that would not stop by itself, and what it started."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    for left in family[1:]:
        # psutil checks the creation time, so that a recycled pid is never hit.
        if left.is_running():
            left.terminate()


def profiler_available() -> bool:
    """Whether py-spy is on the PATH."""
    return shutil.which("py-spy") is not None
