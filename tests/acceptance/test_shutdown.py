"""Stopping on purpose: SIGTERM and POST /shutdown let what runs end, and lose nothing if that takes too long."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.server import Server, free_port

WORKS = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: works}}
spec:
  steps:
    - {{name: a, action: test.append, params: {{path: "{path}", line: a, milliseconds: {milliseconds}}}}}
    - {{name: b, action: test.append, params: {{path: "{path}", line: b}}, depends_on: [a]}}
"""
HELLO = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: hello}
spec: {steps: [{name: a, action: process}]}
"""
MODULES = {"modules": ["tests.acceptance.crash_actions"]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path, actions=MODULES, platform={"node_id": "test-node", "shutdown_grace": "15s"})
    try:
        yield running.start()
    finally:
        running.close()


def by_signal(server: Server) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)


def by_request(server: Server) -> None:
    answer = httpx.post(f"{server.ops}/shutdown")
    assert (answer.status_code, answer.json()) == (202, {"status": "draining"})


def until(server: Server, text: str, timeout_s: float = 10.0) -> None:
    """Wait until the log has the text."""
    deadline = time.monotonic() + timeout_s
    while text not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()[-3000:]
        time.sleep(0.01)


@pytest.mark.parametrize("stop", [by_signal, by_request])
def test_what_runs_comes_to_its_end_and_nothing_more_is_taken(
    server: Server, tmp_path: Path, stop: Callable[[Server], None]
) -> None:
    effects = tmp_path / "effects.txt"
    names = [server.submit(WORKS.format(path=effects, milliseconds=1500)) for _ in range(5)]
    stop(server)
    until(server, "draining")
    refused = server.client.post("/workflows", content=HELLO)
    assert (refused.status_code, refused.json()["code"]) == (503, "KNHK-5003")
    assert refused.headers["content-type"] == "application/problem+json"
    assert int(refused.headers["retry-after"]) >= 1
    ready = httpx.get(f"{server.ops}/ready")
    assert (ready.status_code, ready.json()["detail"]) == (503, "shutting down")
    assert httpx.get(f"{server.ops}/health").status_code == 200
    assert server.status(names[0])["state"] == "running"
    stop(server)  # asking again changes nothing
    assert server.process is not None
    assert server.process.wait(timeout=20) == 0
    assert sorted(effects.read_text().split()) == ["a"] * 5 + ["b"] * 5
    assert "work is left" not in server.log.read_text()
    assert server.verify()["valid"]
    server.start()
    assert {server.status(name)["state"] for name in names} == {"completed"}


def test_what_takes_longer_than_the_grace_goes_on_after_the_restart(tmp_path: Path) -> None:
    server = Server(tmp_path, actions=MODULES, platform={"node_id": "test-node", "shutdown_grace": "300ms"})
    try:
        effects = tmp_path / "effects.txt"
        server.start()
        slow = server.submit(WORKS.format(path=effects, milliseconds=2500))
        deadline = time.monotonic() + 10
        while not effects.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 2.4, "it did not wait for the step"
        assert "work is left" in server.log.read_text()
        assert server.verify()["valid"]
        server.start()
        assert server.wait_for(slow)["steps_completed"] == 2
        assert effects.read_text().split() == ["a", "a", "b"]
        assert server.stop() == 0
        assert server.verify()["valid"]
    finally:
        server.close()


def test_a_run_that_only_waits_does_not_hold_up_the_stop(server: Server) -> None:
    name = server.submit(HELLO.replace("action: process", "action: wait, params: {duration: 60s}"))
    waits_for = server.status(name)["waiting_on"]
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 10
    assert "work is left" not in server.log.read_text()
    server.start()
    assert server.status(name)["waiting_on"] == waits_for


def test_one_data_directory_has_one_server(server: Server) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "knhk", "serve", "--config", str(server.config)],
        capture_output=True,
        text=True,
        env={
            **server.environment(),
            "KNHK_API_PORT": str(free_port()),
            "KNHK_METRICS_PORT": str(free_port()),
        },
        timeout=30,
        check=False,
    )
    assert second.returncode == 5, second.stderr
    assert "KNHK-4004" in second.stderr
    assert str(server.data) in second.stderr
    server.wait_for(server.submit(HELLO))


def test_a_port_that_is_taken_is_named(server: Server, tmp_path: Path) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "knhk", "serve", "--config", str(server.config)],
        capture_output=True,
        text=True,
        env={**server.environment(), "KNHK_PERSISTENCE_PATH": str(tmp_path / "other")},
        timeout=30,
        check=False,
    )
    assert second.returncode == 2, second.stderr
    assert f"api.port: cannot listen on 127.0.0.1:{server.api_port}" in second.stderr
