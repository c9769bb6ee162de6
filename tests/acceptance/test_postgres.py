"""A server on PostgreSQL: kill -9 of either under load loses nothing, doubles no at_most_once effect; all verifies."""

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.acknowledged import ENDED, check, until
from tests.acceptance.server import Server
from tests.acceptance.test_crash import Submitter
from tests.services.postgres import PostgresServer, missing

SEED = 20260124


NAP = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: nap}
spec:
  steps:
    - {name: nap, action: wait, params: {duration: 4s}}
"""


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    if why := missing():
        pytest.skip(why)
    server = PostgresServer().start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def server(tmp_path: Path, postgres: PostgresServer) -> Iterator[Server]:
    running = Server(
        tmp_path,
        persistence={"url": postgres.new_database(), "path": str(tmp_path / "data")},
        actions={"modules": ["tests.acceptance.crash_actions"]},
    )
    try:
        yield running
    finally:
        running.close()


def verdict_of(server: Server) -> dict[str, Any]:
    return server.cli("verify", "--config", str(server.config), "--full", "--output", "json")


class Load:
    """Submits in the background, and checks in the end what became of everything that was acknowledged."""

    def __init__(self, server: Server, effects: Path) -> None:
        self.server, self.effects = server, effects
        self.random = random.Random(SEED)
        self.acknowledged: dict[str, tuple[int, str]] = {}
        self.number = 0
        self.submitter: Submitter | None = None

    def start(self) -> None:
        self.submitter = Submitter(self.server, self.effects, random.Random(self.random.random()), self.number)
        self.submitter.start()

    def stop(self) -> None:
        assert self.submitter is not None
        self.submitter.stopped.set()
        self.submitter.join(timeout=60)
        self.acknowledged.update(self.submitter.acknowledged)
        self.number = self.submitter.number

    def check(self) -> None:
        check(self.acknowledged, self.effects, self._ended)

    def _ended(self, name: str) -> dict[str, Any]:
        deadline = time.monotonic() + 90
        while (shown := self.server.status(name))["state"] not in ENDED:
            assert time.monotonic() < deadline, f"{name} did not end: {shown}"
            time.sleep(0.02)
        return shown


@pytest.mark.timeout(240)
def test_kills_of_the_server_lose_nothing(server: Server, tmp_path: Path) -> None:
    load = Load(server, tmp_path / "effects.txt")
    for _ in range(5):
        server.start()
        load.start()
        time.sleep(load.random.uniform(0.3, 1.0))
        server.kill()
        load.stop()
    assert len(load.acknowledged) >= 50, "too few workflows for the test to mean anything"
    server.start()
    load.check()
    assert server.stop() == 0
    verdict = verdict_of(server)
    assert verdict["valid"], verdict
    assert verdict["verified_count"] == verdict["total_count"] > len(load.acknowledged)
    assert verdict["data"].startswith("postgresql://")


@pytest.mark.timeout(240)
def test_kills_and_restarts_of_postgresql_lose_nothing(
    server: Server, postgres: PostgresServer, tmp_path: Path
) -> None:
    server.start()
    load = Load(server, tmp_path / "effects.txt")
    load.start()
    for number in range(4):
        time.sleep(load.random.uniform(0.5, 1.0))
        (postgres.kill if number % 2 == 0 else postgres.stop)()
        until(lambda: server.client.get(f"{server.ops}/ready").status_code == 503)
        health = server.client.get(f"{server.ops}/health/detailed").json()
        assert health["checks"]["persistence"].startswith("The store cannot be written"), health
        assert server.client.get(f"{server.ops}/health").status_code == 200, "a restart would not help"
        postgres.start()
        until(lambda: server.client.get(f"{server.ops}/ready").status_code == 200)
    time.sleep(0.5)
    load.stop()
    assert len(load.acknowledged) >= 50, "too few workflows for the test to mean anything"
    load.check()
    assert server.stop() == 0
    verdict = verdict_of(server)
    assert verdict["valid"], verdict
    assert verdict["verified_count"] == verdict["total_count"]


@pytest.mark.timeout(120)
def test_a_server_that_starts_takes_over_and_the_former_one_halts(
    server: Server, postgres: PostgresServer, tmp_path: Path
) -> None:
    server.start()
    waiting = server.submit(NAP)
    (tmp_path / "second").mkdir()
    second = Server(tmp_path / "second", persistence=server_section(server))
    try:
        second.start()
        assert second.wait_for(waiting)["state"] == "completed"
        with contextlib.suppress(httpx.TransportError):  # its own timer may have ended it already
            server.client.post("/workflows", content=NAP)
        assert server.process is not None
        assert server.process.wait(timeout=60) == 1, "the former owner must not go on"
        assert "KNHK-4003" in server.log.read_text()
        assert second.stop() == 0
        assert verdict_of(second)["valid"]
    finally:
        second.close()


def server_section(server: Server) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(server.config.read_text())["persistence"])
