"""A disk that is really full: a small tmpfs under the data directory of a real server."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.server import Server

SIZE_MB = 12
WORKFLOW = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: fills}}
spec:
  timeout: 300s
  steps:
    - {{name: a, action: process, params: {{output: "{text}"}}}}
    - {{name: nap, action: wait, params: {{duration: 700ms}}, depends_on: [a]}}
    - {{name: b, action: process, depends_on: [nap], params: {{output: "${{{{ steps.a.output }}}}"}}}}
"""


class SmallDisk:
    """A tmpfs of its own, which the test makes larger and which is always unmounted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        done = _mount("-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=0700", "knhk-test", str(path))
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")

    def resize(self, size_mb: int) -> None:
        done = _mount("-o", f"remount,size={size_mb}m", str(self.path))
        assert done.returncode == 0, done.stderr

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=False, capture_output=True, timeout=20)

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


def _mount(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True, timeout=20)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    small = SmallDisk(tmp_path / "disk")
    try:
        yield small
    finally:
        small.unmount()


@pytest.fixture
def start(tmp_path: Path, disk: SmallDisk) -> Iterator[Callable[[str], Server]]:
    """Starts a server whose data are on the small disk, and everything else is not."""
    started: list[Server] = []

    def starting(min_free: str) -> Server:
        data = disk.path / "data"
        server = Server(
            tmp_path, persistence={"path": str(data), "key_path": str(tmp_path / "keys"), "min_free": min_free}
        )
        server.data = data
        started.append(server)
        return server.start()

    try:
        yield starting
    finally:
        for server in started:
            server.close()


@pytest.mark.parametrize("min_free", ["4MB", "0B"], ids=["stops-before", "hits-the-end"])
def test_a_full_disk_stops_admission_loses_nothing_and_recovers(
    disk: SmallDisk, start: Callable[[str], Server], min_free: str
) -> None:
    server = start(min_free)
    acknowledged, refused = _fill(server)
    assert len(acknowledged) > 10
    _assert_refusal(refused)
    if min_free == "0B":
        assert disk.free_bytes < 1_000_000, "the disk was not full"

    _until(lambda: httpx.get(f"{server.ops}/ready").status_code == 503, 10)
    ready = httpx.get(f"{server.ops}/ready")
    assert ready.headers["content-type"] == "application/problem+json"
    assert int(ready.headers["retry-after"]) >= 1
    health = httpx.get(f"{server.ops}/health/detailed")
    assert (health.status_code, health.json()["status"]) == (200, "unhealthy")
    assert health.json()["checks"]["persistence"].startswith("The disk is full")
    assert health.json()["checks"]["observability"] == "ok"
    assert httpx.get(f"{server.ops}/health").status_code == 200, "a restart would not free the disk"
    for _ in range(5):
        _assert_refusal(server.client.post("/workflows", content=_workflow()))
    for name in acknowledged:
        began = time.monotonic()
        answer = server.client.get(f"/workflows/{name}")
        # While the store is being opened again it cannot be read either; an answer comes in any case.
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 200:
            assert answer.json()["state"] in ("running", "completed")
        assert time.monotonic() - began < 10

    disk.resize(SIZE_MB * 8)
    _until(lambda: httpx.get(f"{server.ops}/ready").status_code == 200, 20)
    assert httpx.get(f"{server.ops}/health/detailed").json()["status"] == "healthy"
    for name in acknowledged:
        assert server.wait_for(name)["steps_completed"] == 3
    server.wait_for(server.submit(_workflow()))
    assert server.stop() == 0
    verdict = server.verify()
    assert verdict["valid"], verdict
    assert verdict["verified_count"] == verdict["total_count"]


def test_a_server_that_is_killed_on_a_full_disk_starts_when_there_is_room(
    disk: SmallDisk, start: Callable[[str], Server]
) -> None:
    server = start("0B")
    acknowledged, _ = _fill(server)
    server.kill()
    disk.resize(SIZE_MB * 8)
    server.start()
    for name in acknowledged:
        server.wait_for(name)
    assert server.stop() == 0
    assert server.verify()["valid"]


def _workflow() -> str:
    return WORKFLOW.format(text=os.urandom(60_000).hex())


def _fill(server: Server) -> tuple[list[str], httpx.Response]:
    """Submit until it is refused; what was acknowledged, and the refusal."""
    acknowledged: list[str] = []
    for _ in range(1_000):
        answer = server.client.post("/workflows", content=_workflow())
        if answer.status_code not in (200, 202):
            return acknowledged, answer
        acknowledged.append(answer.json()["workflow_id"])
    raise AssertionError("the disk never became full")


def _assert_refusal(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    problem = answer.json()
    assert (problem["code"], problem["retryable"]) == ("KNHK-5002", True)
    assert "persistence.path" in problem["hint"]


def _until(holds: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
