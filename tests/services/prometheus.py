"""A real Prometheus on loopback, and promtool."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.server import ROOT, free_port

_UNPACKED = ROOT / ".venv" / "debian" / "prometheus" / "usr" / "bin"


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; the test skips where there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(_UNPACKED))
    if found is None:
        pytest.skip(f"{name} is not installed; on Debian: apt-get install prometheus")
    return found


class Prometheus:
    """One that is running."""

    away: Path | None = None
    """Where the server that is scraped ships to."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._http = httpx.Client(base_url=self.url, timeout=20, trust_env=False)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        answer = self._http.post("/api/v1/query", data={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        result = answer.json()["data"]
        assert result["resultType"] in ("vector", "scalar"), expression
        return list(result["result"])

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health and its alerts."""
        groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._http.close()


@contextmanager
def running(config: Path, directory: Path) -> Iterator[Prometheus]:
    """A Prometheus with this configuration, its data in `directory`."""
    port = free_port()
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={directory}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (directory.parent / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    server = Prometheus(port)
    try:
        deadline = time.monotonic() + 30
        while not server.ready():
            assert process.poll() is None, (directory.parent / "prometheus.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield server
    finally:
        server.close()
        process.terminate()
        process.wait(timeout=20)
