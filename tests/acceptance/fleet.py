"""Several real nodes on a real PostgreSQL and a real etcd of three members, and a load that checks itself."""

import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.acknowledged import check, ended, until
from tests.acceptance.server import Server
from tests.acceptance.test_crash import DESCRIPTOR, ONCE
from tests.services.etcd import EtcdCluster
from tests.services.postgres import PostgresServer

TTL_S = 4
PARTITIONS = 12


class Fleet:
    """Nodes by name. They keep their ports and directories over restarts."""

    def __init__(self, directory: Path, **sections: dict[str, Any]) -> None:
        self.directory, self.sections = directory, sections
        self.postgres = PostgresServer().start()
        self.etcd = EtcdCluster().start()
        self.url = self.postgres.new_database()
        self.nodes: dict[str, Server] = {}
        self.running: set[str] = set()

    def add(self, name: str, *, url: str = "", etcd: list[str] | None = None) -> Server:
        home = self.directory / name
        home.mkdir()
        sections = {**self.sections}
        node = Server(
            home,
            platform={"node_id": name, **sections.pop("platform", {})},
            persistence={"url": url or self.url, "path": str(home / "data"), "postgres": {"timeout": "5s"}},
            actions={"modules": ["tests.acceptance.crash_actions"]},
            cluster={
                "mode": True,
                "etcd": etcd or self.etcd.endpoints,
                "partitions": PARTITIONS,
                "lease_ttl": f"{TTL_S}s",
                "handover_grace": "2s",
            },
            **sections,
        )
        self.nodes[name] = node
        return self.start(name)

    def start(self, name: str) -> Server:
        self.nodes[name].start(timeout_s=60)
        self.running.add(name)
        return self.nodes[name]

    def kill(self, name: str) -> None:
        self.running.discard(name)
        self.nodes[name].kill()

    def stop(self, name: str) -> None:
        self.running.discard(name)
        assert self.nodes[name].stop() == 0

    def signal(self, name: str, number: signal.Signals) -> None:
        process = self.nodes[name].process
        assert process is not None
        process.send_signal(number)

    def any(self) -> Server:
        return self.nodes[sorted(self.running)[0]]

    def status(self, name: str = "") -> dict[str, Any]:
        node = self.nodes[name] if name else self.any()
        return dict(node.client.get("/cluster").json())

    def settled(self, *names: str, timeout_s: float = 60.0) -> float:
        """Wait until exactly these nodes are members and own everything; the seconds that it took."""
        began = time.monotonic()
        wanted = set(names) or self.running

        def holds() -> bool:
            try:
                shown = self.status()
            except httpx.HTTPError:
                return False
            there = {node["node_id"] for node in shown["nodes"]}
            owners = {one["owner"] for one in shown["partitions"]}
            return there == wanted and owners <= wanted and shown["moving"] == 0 and not shown["trouble"]

        until(holds, timeout_s)
        return time.monotonic() - began

    def close(self) -> None:
        for node in self.nodes.values():
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
            node.close()
        self.etcd.close()
        self.postgres.close()

    def log(self, name: str) -> str:
        return self.nodes[name].log.read_text()


class Load(threading.Thread):
    """Submits to any running node until it is told to stop; what cannot connect is tried at another node.

    `refused` are answers other than an acceptance, by code. Each submission is repeated with its key until it is taken.
    """

    def __init__(self, fleet: Fleet, effects: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.fleet, self.effects, self.random = fleet, effects, random.Random(seed)
        self.acknowledged: dict[str, tuple[int, str]] = {}
        self.refused: Counter[str] = Counter()
        self.stopped = threading.Event()
        self.number = 0

    def run(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self.stopped.is_set():
                self.number += 1
                self._submit(client, "once" if self.number % 4 == 0 else "crash")
                time.sleep(0.01)

    def _submit(self, client: httpx.Client, kind: str) -> None:
        text = (ONCE if kind == "once" else DESCRIPTOR).format(
            number=self.number,
            path=self.effects,
            pause=self.random.choice([0, 5, 40]),
            nap=self.random.choice([1, 300]),
        )
        while not self.stopped.is_set():
            names = sorted(self.fleet.running)
            if not names:
                time.sleep(0.05)
                continue
            url = self.fleet.nodes[self.random.choice(names)].api
            try:
                answer = client.post(
                    f"{url}/workflows", content=text, headers={"Idempotency-Key": f"{id(self)}-{self.number}"}
                )
            except httpx.TransportError as error:
                self.refused[type(error).__name__] += 1
                time.sleep(0.05)
                continue
            if answer.status_code in (200, 202):
                self.acknowledged[answer.json()["workflow_id"]] = (self.number, kind)
                return
            self.refused[answer.json()["code"]] += 1
            time.sleep(0.1)

    def finish(self, at_least: int = 100) -> None:
        """Every acknowledged run ends well; at_most_once effects are never doubled, the others never missing."""
        until(lambda: len(self.acknowledged) >= at_least, 60)
        self.stopped.set()
        self.join(timeout=60)
        check(self.acknowledged, self.effects, self._ended)

    def _ended(self, name: str) -> dict[str, Any]:
        return ended(name, lambda target: self.fleet.any().client.get(target))


def verified(fleet: Fleet) -> dict[str, Any]:
    """Everything in the journal, verified offline."""
    node = next(iter(fleet.nodes.values()))
    verdict = node.cli("verify", "--config", str(node.config), "--full", "--output", "json")
    assert verdict["valid"], verdict
    assert verdict["verified_count"] == verdict["total_count"]
    return verdict
