"""Several real nodes with a RocksDB each, and a real etcd."""

import asyncio
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from knhk.persistence.journal_check import verify_all
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.verification import Trust
from knhk.security.signing import verify
from tests.acceptance.acknowledged import check, ended, until
from tests.acceptance.fleet import TTL_S, Fleet
from tests.acceptance.server import Server
from tests.acceptance.test_crash import DESCRIPTOR, ONCE
from tests.services.etcd import EtcdCluster


class OwnFleet(Fleet):
    """As Fleet, without PostgreSQL. `partition_of` knows which partition a node made."""

    def __init__(
        self,
        directory: Path,
        *,
        takeover: bool = False,
        shipped: str = "",
        variables: dict[str, str] | None = None,
        **sections: Any,
    ) -> None:
        self.directory, self.sections = directory, sections
        self.takeover, self.shipped = takeover, shipped
        self.etcd = EtcdCluster(1).start()
        self.nodes: dict[str, Server] = {}
        self.running: set[str] = set()
        self.proxies = {}
        self.variables = variables or {}

    def add(self, name: str, *, url: str = "", etcd: list[str] | None = None) -> Server:
        assert not url
        home = self.directory / name
        home.mkdir()
        sections = {**self.sections}
        node = Server(
            home,
            platform={"node_id": name},
            actions={"modules": ["tests.acceptance.crash_actions"]},
            recovery={"backup_to": self.shipped, "ship_interval": "500ms", **sections.pop("recovery", {})},
            cluster={
                "mode": True,
                "etcd": etcd or self.etcd.endpoints,
                "lease_ttl": f"{TTL_S}s",
                "handover_grace": "2s",
                "takeover": self.takeover,
            },
            **sections,
        )
        node.variables.update(self.variables)
        self.nodes[name] = node
        return self.start(name)

    def start(self, name: str) -> Server:
        self.nodes[name].start(timeout_s=150)
        self.running.add(name)
        return self.nodes[name]

    def add_all(self, *names: str) -> None:
        """All at the same time, as in a data centre that gets its power back."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.add, names))

    def close(self) -> None:
        for node in self.nodes.values():
            if node.process is not None and node.process.poll() is None:
                node.process.kill()
            node.close()
        self.etcd.close()

    def owners(self) -> dict[int, str | None]:
        return {one["partition"]: one["owner"] for one in self.status()["partitions"]}

    def partition_of(self, name: str) -> int:
        return next(number for number, owner in self.owners().items() if owner == name)

    def elsewhere(self, name: str) -> Server:
        return self.nodes[min(self.running - {name})]

    def directories(self) -> list[Path]:
        """The journals as they are now, each at the node that has it."""
        found = self.directory.glob("*/data/partitions/*")
        return sorted(path for path in found if path.name.isdecimal())

    def restored(self, number: int, timeout_s: float = 90.0) -> float:
        """Wait until the owner of a partition has restored it from another node's; the seconds that it took."""
        began = time.monotonic()
        until(lambda: self.status()["partitions"][number]["restored"], timeout_s)
        return time.monotonic() - began

    def ships_all(self, name: str) -> None:
        """Wait until all that a node has committed has arrived."""
        node = self.nodes[name]

        def lags() -> float:
            lines = node.client.get(f"{node.ops}/metrics").text.splitlines()
            return sum(float(one.split()[-1]) for one in lines if one.startswith("knhk_recovery_ship_lag_seconds"))

        time.sleep(1.5)  # the shipper looks twice in 0.5 s
        until(lambda: lags() == 0)

    def verify(self, directories: list[Path]) -> int:
        """Every journal, verified offline; how many runs they have together."""
        return sum(asyncio.run(_verified(path)) for path in directories)

    def get(self, name: str, target: str) -> httpx.Response:
        return self.nodes[name].client.get(target)


class Load(threading.Thread):
    """Submits to any running node until it is told to stop; what cannot connect is tried at another node.

    `refused` are answers other than an acceptance, by code. Each submission is repeated with its key until it is taken.
    """

    def __init__(self, fleet: OwnFleet, effects: Path, seed: int) -> None:
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


async def _verified(path: Path) -> int:
    """As `knhk verify --full`, without a process of its own."""
    store = RocksDbStore.open(path, read_only=True)
    try:
        trust = Trust.of(await store.keys(), verify)
        report = await verify_all(store, store.scanner(), trust, lambda *_: None)
    finally:
        await store.close()
    assert report.valid, (path, report.problems)
    return report.workflows
