"""A KNHK server as its own process, as users start it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """Starts, kills and stops `knhk serve` on one data directory. Ports stay the same over restarts."""

    def __init__(self, directory: Path, **sections: dict[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.data = directory / "data"
        self.api_port, self.ops_port = free_port(), free_port()
        config: dict[str, dict[str, Any]] = {
            "platform": {"node_id": "test-node", "shutdown_grace": "20s"},
            "persistence": {"path": str(self.data)},
            "api": {"port": self.api_port},
            "observability": {"metrics_port": self.ops_port},
            "recovery": {"checkpoint_path": str(directory / "checkpoints")},
        }
        for section, values in sections.items():
            config.setdefault(section, {}).update(values)
        self.config = directory / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.arguments = ["serve", "--config", str(self.config)]
        self.log = directory / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.module = "knhk"
        self.variables: dict[str, str] = {}
        """What the server and the command line find in their environment besides."""
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.api_port}", timeout=30)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def ops(self) -> str:
        return f"http://127.0.0.1:{self.ops_port}"

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KNHK_")}
        return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), **self.variables}

    def start(self, timeout_s: float = 90.0) -> "Server":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, *self.arguments],
                stdout=log,
                stderr=log,
                env=self.environment(),
                cwd=self.directory,
            )
        return self.wait_ready(timeout_s)

    def wait_ready(self, timeout_s: float = 90.0) -> "Server":
        """Wait until the server takes workflows, whoever has started it."""
        deadline = time.monotonic() + timeout_s
        # Without the certificates, which are not needed and take long to load.
        with httpx.Client(timeout=2, verify=False) as probe:
            while time.monotonic() < deadline:
                if self.process is not None and self.process.poll() is not None:
                    code, log = self.process.returncode, self.log.read_text()[-4000:]
                    raise AssertionError(f"the server ended with {code}:\n{log}")
                try:
                    if probe.get(f"{self.ops}/ready").status_code == 200:
                        return self
                except httpx.TransportError:
                    pass
                time.sleep(0.02)
        raise AssertionError(f"the server is not ready after {timeout_s} s:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=20)

    def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM and wait; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout_s)

    def close(self) -> None:
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=20)

    def submit(self, descriptor: str, **headers: str) -> str:
        answer = self.client.post("/workflows", content=descriptor, headers=headers)
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["workflow_id"])

    def status(self, workflow_id: str, verbose: bool = False) -> dict[str, Any]:
        answer = self.client.get(f"/workflows/{workflow_id}", params={"verbose": verbose})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait_for(self, workflow_id: str, state: str = "completed", timeout_s: float = 30.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            shown = self.status(workflow_id)
            if shown["state"] == state:
                return shown
            if shown["state"] in ("completed", "failed", "cancelled", "timed_out"):
                raise AssertionError(f"{workflow_id} ended as {shown['state']}: {shown['failure']}")
            time.sleep(0.02)
        raise AssertionError(f"{workflow_id} is still {shown['state']}: {shown}")

    def verify(self) -> dict[str, Any]:
        """Everything in the data directory, verified offline by the CLI."""
        return self.cli("verify", "--data", str(self.data), "--full", "--output", "json")

    def cli(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "knhk", *arguments],
            capture_output=True,
            env={**self.environment(), "KNHK_SERVER": self.api, "KNHK_OPERATIONS": self.ops},
            cwd=self.directory,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"{done.returncode}: {done.stdout.decode()} {done.stderr.decode()}"
        return dict(json.loads(done.stdout)) if done.stdout.strip().startswith(b"{") else {}
