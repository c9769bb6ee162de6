"""Several processes on one data directory, as a user starts them: who dies is started again, and nothing is lost."""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from knhk.domain.identifier import parse, partition_of
from tests.acceptance.acknowledged import check, ended, until
from tests.acceptance.server import Server
from tests.acceptance.test_crash import DESCRIPTOR, ONCE
from tests.services.postgres import PostgresServer

WAITING = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: waiting}
spec:
  timeout: 300s
  steps: [{name: hold, action: wait_for, params: {event: go, correlate: "1", timeout: 200s}}]
"""
NEWS = WAITING.replace("event: go", "event: news")
QUICK = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: quick}
spec:
  steps: [{name: one, action: process, params: {output: 1}}]
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, platform={"processes": 2}, actions={"modules": ["tests.acceptance.crash_actions"]})
    try:
        yield server
    finally:
        server.close()


def with_processes(server: Server, count: int) -> None:
    config = yaml.safe_load(server.config.read_text())
    config["platform"]["processes"] = count
    server.config.write_text(yaml.safe_dump(config))


def processes(server: Server) -> list[dict[str, Any]]:
    return list(httpx.get(f"{server.ops}/processes", timeout=10).json()["processes"])


def everywhere(server: Server, **headers: str) -> dict[int, str]:
    """A quick run in each partition: new connections come to either process."""
    found: dict[int, str] = {}
    for _ in range(200):
        if len(found) == 2:
            return found
        with httpx.Client(base_url=server.api, timeout=30) as client:
            answer = client.post("/workflows", content=QUICK, headers=headers)
        assert answer.status_code in (200, 202), answer.text
        name = answer.json()["workflow_id"]
        found[partition_of(parse(name))] = name
    raise AssertionError(f"all runs came to partition {list(found)}")


def submitted(server: Server, text: str, key: str) -> str:
    """A workflow, submitted until it is taken: connections to a process that dies break."""
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            answer = server.client.post("/workflows", content=text, headers={"Idempotency-Key": key})
            if answer.status_code in (200, 202):
                return str(answer.json()["workflow_id"])
            assert answer.status_code == 503, answer.text
        time.sleep(0.1)
    raise AssertionError("no process takes it")


def is_back(server: Server, number: int) -> bool:
    """Whether a process has ended once, and runs again."""
    shown = processes(server)[number]
    return shown["restarts"] == 1 and shown["state"] == "running"


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def taken_by(load: "Load", more: int) -> None:
    """Wait until so many further runs are acknowledged."""
    wanted = len(load.acknowledged) + more
    until(lambda: len(load.acknowledged) >= wanted)


class Load(threading.Thread):
    """Submits over new connections; repeats what was not acknowledged with the same key."""

    def __init__(self, server: Server, effects: Path) -> None:
        super().__init__(daemon=True)
        self.server, self.effects = server, effects
        no_keeping = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=server.api, timeout=30, limits=no_keeping)
        self.acknowledged: dict[str, tuple[int, str]] = {}
        self.refused: Counter[str] = Counter()
        self.stopped = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.stopped.is_set():
            number += 1
            kind = "once" if number % 4 == 0 else "crash"
            text = (ONCE if kind == "once" else DESCRIPTOR).format(
                number=number, path=self.effects, pause=random.choice([0, 5, 40]), nap=random.choice([1, 300])
            )
            self._submit(number, kind, text)

    def _submit(self, number: int, kind: str, text: str) -> None:
        for _ in range(600):
            try:
                answer = self.client.post("/workflows", content=text, headers={"Idempotency-Key": f"k{number}"})
            except httpx.TransportError as error:
                self.refused[type(error).__name__] += 1
            else:
                if answer.status_code in (200, 202):
                    self.acknowledged[answer.json()["workflow_id"]] = (number, kind)
                    return
                self.refused[answer.json()["code"]] += 1
            time.sleep(0.05)

    def finish(self) -> None:
        self.stopped.set()
        self.join(timeout=60)
        check(self.acknowledged, self.effects, lambda name: ended(name, self._answer))

    def _answer(self, target: str) -> httpx.Response:
        """Connections break when the process that they lead to dies."""
        while True:
            with contextlib.suppress(httpx.TransportError):
                return self.server.client.get(target)
            time.sleep(0.05)


@pytest.mark.timeout(280)
def test_processes_die_and_nothing_is_lost(server: Server, tmp_path: Path) -> None:
    server.start(60)
    load = Load(server, tmp_path / "effects")
    load.start()
    for number in (1, 0):
        taken_by(load, 30)
        os.kill(processes(server)[number]["pid"], signal.SIGKILL)
        until(partial(is_back, server, number))
        assert httpx.get(f"{server.ops}/ready", timeout=10).status_code == 200
    detailed = httpx.get(f"{server.ops}/health/detailed", timeout=10).json()
    assert detailed["checks"]["processes"] == "ok", detailed
    assert server.cli("top", "--once", "--interval", "100ms", "--output", "json")["ready"]
    taken_by(load, 10)
    pids = [one["pid"] for one in processes(server)]
    server.kill()  # the supervisor: nobody may go on with a database that the next one needs
    until(lambda: not any(map(lives, pids)))
    with_processes(server, 1)
    server.start(60)  # one process goes on with both partitions
    assert [one["partitions"] for one in processes(server)] == [[0, 1]]
    taken_by(load, 10)
    load.finish()
    assert {partition_of(parse(name)) for name in load.acknowledged} == {0, 1}
    assert server.stop() == 0
    verdict = server.verify()
    assert verdict["valid"], verdict
    assert verdict["workflows"] >= len(load.acknowledged)
    name = next(one for one in load.acknowledged if partition_of(parse(one)) == 1)
    assert server.cli("receipts", "verify", name, "--data", str(server.data), "--output", "json")["valid"]


def resize(server: Server, count: int, owned: list[list[int]]) -> None:
    """Have so many processes, and wait until they own these partitions."""
    answer = httpx.put(f"{server.ops}/processes", json={"count": count}, timeout=60)
    assert answer.status_code == 200, answer.text
    wanted = [(partitions, "running") for partitions in owned]  # a process has its partitions before it answers
    until(lambda: [(one["partitions"], one["state"]) for one in processes(server)] == wanted)


def _their_number_changes_while_they_run(server: Server) -> None:
    held = [server.submit(WAITING, **{"Idempotency-Key": f"held-{number}"}) for number in range(6)]
    assert {partition_of(parse(name)) for name in held} == {0, 1}
    for count, owned in ((1, [[0, 1]]), (2, [[0], [1]])):
        resize(server, count, owned)
        assert all(server.status(name)["state"] == "running" for name in held)
        for _ in range(3):
            name = held.pop()
            server.client.post(f"/workflows/{name}/signals", json={"event": "go", "correlate": "1"}).raise_for_status()
            server.wait_for(name)
    assert httpx.put(f"{server.ops}/processes", json={"count": 3}, timeout=10).status_code == 403


@pytest.mark.timeout(280)
def test_a_second_process_on_the_data_of_one_and_any_answers_any_request(server: Server) -> None:
    with_processes(server, 1)
    server.start(60)
    keys = [f"key-{number}" for number in range(12)]
    before = [server.submit(QUICK, **{"Idempotency-Key": key}) for key in keys]
    waiting = [server.submit(WAITING)]
    assert server.stop() == 0
    with_processes(server, 2)
    server.start(60)
    # Taken when there was one partition, wherever the key belongs now.
    assert [server.submit(QUICK, **{"Idempotency-Key": key}) for key in keys] == before
    later = [server.submit(QUICK, **{"Idempotency-Key": f"later-{key}"}) for key in keys]
    assert {partition_of(parse(name)) for name in later} == {0, 1}
    assert [server.submit(QUICK, **{"Idempotency-Key": f"later-{key}"}) for key in keys] == later
    waiting += [server.submit(WAITING, **{"Idempotency-Key": f"waiting-{key}"}) for key in keys]
    runs = everywhere(server)
    _lists_are_one(server, [*before, *later, *waiting, *runs.values()])
    _changes_reach_the_owner(server, runs, waiting)
    _definitions_are_everywhere(server)
    _their_number_changes_while_they_run(server)
    snapshots = _operations_speak_for_all(server)
    assert server.stop() == 0
    _one_partition_is_restored_and_the_others_stay(server, snapshots)
    assert server.cli("receipts", "verify", runs[1], "--data", str(server.data), "--output", "json")["valid"]


def _lists_are_one(server: Server, names: list[str]) -> None:
    listed = server.client.get("/workflows", params={"limit": 1000}).json()["workflows"]
    found = [one["workflow_id"] for one in listed]
    assert {*found} >= {*names}
    assert found == sorted(found, key=parse, reverse=True)
    paged, cursor = list[str](), None
    while cursor is not None or not paged:
        given = {"limit": 7} if cursor is None else {"limit": 7, "cursor": cursor}
        page = server.client.get("/workflows", params=given).json()
        paged += [one["workflow_id"] for one in page["workflows"]]
        cursor = page["next_cursor"]
    assert paged == found


def _changes_reach_the_owner(server: Server, runs: dict[int, str], waiting: list[str]) -> None:
    for name in runs.values():
        server.wait_for(name)
        assert "workflow.completed" in server.client.get(f"/workflows/{name}/events").text
        assert server.client.get(f"/workflows/{name}/receipts").json()["receipts"]
    assert {partition_of(parse(name)) for name in waiting} == {0, 1}
    for name in waiting[:-1]:
        signal_body = {"event": "go", "correlate": "1"}
        server.client.post(f"/workflows/{name}/signals", json=signal_body).raise_for_status()
        server.wait_for(name)
    assert server.client.post(f"/workflows/{waiting[-1]}/cancel").json()["state"] == "cancelled"
    _an_event_reaches_the_runs_of_all(server, [submitted(server, NEWS, f"news-{number}") for number in range(8)])
    # In each partition it is kept for what waits only later.
    late = [submitted(server, NEWS, f"late-{number}") for number in range(8)]
    assert {partition_of(parse(name)) for name in late} == {0, 1}
    for name in late:
        server.wait_for(name)


def _definitions_are_everywhere(server: Server) -> None:
    assert server.client.put("/definitions/quick", content=QUICK).status_code in (200, 201)
    for _ in range(4):
        with httpx.Client(base_url=server.api, timeout=30) as other:
            assert other.post("/workflows", json={"name": "quick"}).status_code in (200, 202)
            assert other.get("/definitions").json()["definitions"][0]["name"] == "quick"


def _an_event_reaches_the_runs_of_all(server: Server, waiting: list[str]) -> None:
    body = {"event": "news", "correlate": "1", "id": "news-1"}
    answer = server.client.post("/events", json=body).json()
    assert {*answer["delivered_to"], *answer["pending"]} <= {*waiting}
    assert {partition_of(parse(name)) for name in waiting} == {0, 1}
    for name in waiting:
        server.wait_for(name)
    assert server.client.post("/events", json=body).json()["replayed"]


def _operations_speak_for_all(server: Server) -> list[dict[str, Any]]:
    metrics = httpx.get(f"{server.ops}/metrics", timeout=10).text.splitlines()
    assert [line for line in metrics if line.startswith("knhk_process_up{")] == [
        'knhk_process_up{process="0"} 1.0',
        'knhk_process_up{process="1"} 1.0',
    ]
    until(lambda: httpx.get(f"{server.ops}/processes/1/health", timeout=30).json()["status"] == "healthy")
    snapshots = httpx.post(f"{server.ops}/checkpoint", timeout=60).json()["partitions"]
    assert [one["partition"] for one in snapshots] == [0, 1]
    changed = httpx.put(f"{server.ops}/log-level", json={"level": "debug"}, timeout=10)
    assert changed.status_code == 200
    assert httpx.get(f"{server.ops}/processes/1/log-level", timeout=10).json() == {"level": "debug"}
    return list(snapshots)


def _one_partition_is_restored_and_the_others_stay(server: Server, snapshots: list[dict[str, Any]]) -> None:
    for one in snapshots:
        data = server.data / "partitions" / "1" if one["partition"] else server.data
        server.cli("recover", "--snapshot", one["path"], "--config", str(server.config), "--data", str(data))
    assert server.verify()["valid"]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    running = PostgresServer().start()
    yield running
    running.close()


@pytest.mark.soak
@pytest.mark.timeout(280)
def test_with_postgresql(server: Server, postgres: PostgresServer) -> None:
    config = yaml.safe_load(server.config.read_text())
    config["persistence"]["url"] = postgres.new_database()
    server.config.write_text(yaml.safe_dump(config))
    server.start(60)
    runs = everywhere(server)
    os.kill(processes(server)[1]["pid"], signal.SIGKILL)
    waiting = [submitted(server, NEWS, f"w{number}") for number in range(8)]
    assert {partition_of(parse(name)) for name in waiting} == {0, 1}
    until(partial(is_back, server, 1))
    _an_event_reaches_the_runs_of_all(server, waiting)
    for name in runs.values():
        server.wait_for(name)
    assert server.stop() == 0
    assert server.cli("verify", "--config", str(server.config), "--output", "json")["valid"]
