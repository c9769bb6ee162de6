"""Remote workers as real processes: killed, stalled and stopped, on a server that is killed too."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from knhk import Client
from tests.acceptance.server import ROOT, Server

EXAMPLES = ROOT / "examples" / "workers"
SLOW = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: slow}}
spec:
  timeout: 10m
  steps:
    - {{name: a, action: {action}, queue: gpu, params: {{path: "{path}", seconds: {seconds}}}}}
  outputs: {{pid: "${{{{ steps.a.output.pid }}}}"}}
"""

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Start]:
    """Starts workers, and kills what is left of them."""
    running: list[subprocess.Popen[bytes]] = []

    def make(*options: str, module: str = "tests.acceptance.worker_actions", queue: str = "gpu") -> Any:
        command = [sys.executable, "-m", "knhk", "worker", "-m", module, "-q", queue, "--server", server.api, *options]
        log = (tmp_path / f"worker-{len(running)}.log").open("wb")
        running.append(subprocess.Popen(command, stdout=log, stderr=log, env=server.environment(), cwd=EXAMPLES))
        log.close()
        return running[-1]

    try:
        yield make
    finally:
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait(timeout=20)


def test_a_worker_reads_and_makes_blobs(server: Server, start: Start) -> None:
    """The same action in a worker and in the server: over HTTP there, from the area here."""
    flow = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: blobs}
spec:
  inputs: {source: {type: object}}
  steps:
    - {name: turn, action: remote.reversed, queue: gpu, params: {source: "${{ inputs.source }}"}}
  outputs: {turned: "${{ steps.turn.output }}"}
"""
    data = bytes(range(256)) * 2000
    start()
    with Client(server.api) as client:
        done = client.run(flow, {"source": client.blobs.put(data)})
        assert done.outputs is not None, done
        turned = done.outputs["turned"]
        assert (turned["size"], turned["media_type"]) == (len(data), "text/plain")
        assert sum(map(len, client.blobs.read(turned))) == len(data)
        again = client.blobs.put(iter([data[:7], data[7:]]), "image/png")
        assert again.digest == client.blobs.put(data).digest
        missing = client.run(flow, {"source": {"$blob": turned["$blob"], "size": 1}})
        assert missing.state == "completed"


def lines(file: Path, count: int, within_s: float = 60.0) -> list[str]:
    """The lines of a file once there are so many."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = file.read_text().splitlines() if file.exists() else []
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{count} lines are not there: {found}")


def slow(server: Server, path: Path, seconds: float = 0.0, action: str = "remote.slow") -> str:
    return server.submit(SLOW.format(path=path, seconds=seconds, action=action))


def pid_of(server: Server, workflow_id: str) -> int:
    server.wait_for(workflow_id, timeout_s=90)
    return int(server.status(workflow_id, verbose=True)["outputs"]["pid"])


def test_a_killed_worker_is_replaced(server: Server, start: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    first = start("--lease", "2s")
    workflow_id = slow(server, notes, seconds=5)
    lines(notes, 1)
    first.kill()
    second = start("--lease", "2s")
    assert pid_of(server, workflow_id) == second.pid
    found = [line.split() for line in lines(notes, 2)]
    assert [int(pid) for pid, *_ in found] == [first.pid, second.pid]
    assert [attempt for _, attempt, _ in found] == ["1", "1"]  # no attempt of the retry policy is spent
    assert len({key for *_, key in found}) == 1
    assert server.stop() == 0
    assert server.verify()["valid"]


def test_a_stalled_worker_is_refused_when_it_comes_back(server: Server, start: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    zombie = start("--lease", "2s")
    workflow_id = slow(server, notes, seconds=3)
    lines(notes, 1)
    zombie.send_signal(signal.SIGSTOP)
    other = start("--lease", "2s")
    assert pid_of(server, workflow_id) == other.pid
    before = len(server.client.get(f"/workflows/{workflow_id}/receipts").json()["receipts"])
    zombie.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 60
    while "refused" not in (text := (tmp_path / "worker-0.log").read_text()) and "lost" not in text:
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    assert len(server.client.get(f"/workflows/{workflow_id}/receipts").json()["receipts"]) == before
    again = slow(server, notes)  # both still work
    server.wait_for(again)


def test_a_worker_answers_the_server_that_was_killed_meanwhile(server: Server, start: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    process = start("--lease", "60s")
    workflow_id = slow(server, notes, seconds=2)
    lines(notes, 1)
    server.kill()
    server.start()
    assert pid_of(server, workflow_id) == process.pid
    assert len(lines(notes, 1)) == 1  # it was not given out again
    again = slow(server, notes)
    assert pid_of(server, again) == process.pid
    assert server.stop() == 0
    assert server.verify()["valid"]


def test_what_a_worker_held_when_all_were_killed_is_given_out_again(tmp_path: Path, request: Any) -> None:
    server = Server(tmp_path, workers={"lease": "2s"})
    request.addfinalizer(server.close)
    server.start()
    notes = tmp_path / "notes"
    command = [sys.executable, "-m", "knhk", "worker", "-m", "tests.acceptance.worker_actions", "-q", "gpu"]
    command += ["--server", server.api, "--lease", "2s"]
    workflow_id = slow(server, notes, seconds=3)
    first = subprocess.Popen(command, env=server.environment(), cwd=EXAMPLES)
    lines(notes, 1)
    server.kill()
    first.kill()
    first.wait(timeout=20)
    server.start()
    second = subprocess.Popen(command, env=server.environment(), cwd=EXAMPLES)
    try:
        assert pid_of(server, workflow_id) == second.pid
    finally:
        second.kill()
        second.wait(timeout=20)


@pytest.mark.parametrize("action", ["remote.slow", "remote.blocking"])
def test_a_worker_that_is_stopped_finishes_what_it_has(
    server: Server, start: Start, tmp_path: Path, action: str
) -> None:
    notes = tmp_path / "notes"
    process = start()
    workflow_id = slow(server, notes, seconds=2, action=action)
    lines(notes, 1)
    process.terminate()
    later = slow(server, notes)
    assert process.wait(timeout=60) == 0
    assert pid_of(server, workflow_id) == process.pid
    assert server.status(later)["waiting_on"][0]["kind"] == "worker"


def test_a_worker_that_may_not_wait_gives_back_what_it_has(server: Server, start: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    process = start("--grace", "100ms", "--lease", "1h")
    workflow_id = slow(server, notes, seconds=5)
    lines(notes, 1)
    process.terminate()
    assert process.wait(timeout=60) == 1
    second = start()
    assert pid_of(server, workflow_id) == second.pid  # at once, not after an hour


def test_a_cancelled_run_stops_its_work(server: Server, start: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    start("--lease", "2s", "--concurrency", "1")
    workflow_id = slow(server, notes, seconds=600)
    lines(notes, 1)
    server.client.post(f"/workflows/{workflow_id}/cancel").raise_for_status()
    server.wait_for(slow(server, notes), timeout_s=60)  # the worker's only place is free again


def test_the_example_with_workers_in_two_languages(server: Server, start: Start) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    start(module="render")
    script = subprocess.Popen([node, str(EXAMPLES / "thumbnail_worker.mjs"), server.api])
    try:
        file = str(EXAMPLES / "media.yaml")
        done = server.cli("workflow", "submit", file, "--wait", "60s", "-o", "json")
        assert done["outputs"]["thumbnail"] == f"{done['outputs']['video']}@320"
        bad = server.cli("workflow", "submit", file, "-i", "width=0", "--wait", "60s", "-o", "json", code=1)
        assert bad["failure"]["code"] == "THUMBNAIL-WIDTH"
        script.terminate()
        assert script.wait(timeout=30) == 0
    finally:
        script.kill()
        script.wait(timeout=20)


def test_a_module_that_is_not_there_is_named(server: Server) -> None:
    server.cli("worker", "-m", "no_such_module", "-q", "gpu", code=2)
    server.cli("worker", "-m", "tests.acceptance.worker_actions", "-q", "gpu", "--lease", "soon", code=2)
