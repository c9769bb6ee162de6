"""Several real nodes on a real PostgreSQL and a real etcd of three members."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.acknowledged import until
from tests.acceptance.server import Server
from tests.services.etcd import EtcdCluster
from tests.services.postgres import PostgresServer
from tests.services.proxy import Proxy

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
        self.proxies: dict[str, tuple[Proxy, list[Proxy]]] = {}
        """For nodes whose network can be cut: the way to PostgreSQL, and to each member of etcd."""
        self.running: set[str] = set()
        self.members: tuple[str, ...] = ()

    def add_behind_proxies(self, name: str, **settings: str) -> Server:
        """A node whose network can be cut; `settings` as of `make`."""
        to_postgres, to_etcd = Proxy(self.postgres.port), [Proxy(port) for port in self.etcd.client_ports]
        self.proxies[name] = to_postgres, to_etcd
        database = self.url.rpartition("/")[2]
        endpoints = [f"http://127.0.0.1:{proxy.port}" for proxy in to_etcd]
        return self.add(name, url=self.postgres.url(database, to_postgres.port), etcd=endpoints, **settings)

    def add(self, name: str, *, url: str = "", etcd: list[str] | None = None, **settings: str) -> Server:
        self.make(name, url=url, etcd=etcd, **settings)
        return self.start(name)

    def make(
        self,
        name: str,
        *,
        url: str = "",
        etcd: list[str] | None = None,
        timeout: str = "5s",
        lease_ttl: str = f"{TTL_S}s",
    ) -> Server:
        """A node that is not started yet; `timeout` is how long it waits for PostgreSQL."""
        home = self.directory / name
        home.mkdir()
        sections = {**self.sections}
        node = Server(
            home,
            platform={"node_id": name, **sections.pop("platform", {})},
            persistence={"url": url or self.url, "path": str(home / "data"), "postgres": {"timeout": timeout}},
            actions={"modules": ["tests.acceptance.crash_actions"]},
            cluster={
                "mode": True,
                "etcd": etcd or self.etcd.endpoints,
                "partitions": PARTITIONS,
                "lease_ttl": lease_ttl,
                "handover_grace": "2s",
            },
            **sections,
        )
        self.nodes[name] = node
        return node

    def add_all(self, first: str, *others: str) -> None:
        """The first makes the tables, then the others come together."""
        self.members = (first, *others)
        self.add(first)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.add, others))
        self.settled()

    def mended(self) -> "Fleet":
        """Have these nodes run, no others, and all of etcd, whatever a test has done to them."""
        self.etcd.mend()
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.stop, [name for name in self.running if name not in self.members]))
            list(pool.map(self.start, [name for name in self.members if name not in self.running]))
        self.settled()
        return self

    def start(self, name: str) -> Server:
        self.nodes[name].start(timeout_s=60)
        self.running.add(name)
        return self.nodes[name]

    def kill(self, name: str) -> None:
        self.nodes[name].kill()
        self.running.discard(name)

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
        for to_postgres, to_etcd in self.proxies.values():
            for proxy in (to_postgres, *to_etcd):
                proxy.close()
        self.etcd.close()
        self.postgres.close()

    def metric(self, name: str, metric: str) -> float:
        """The sum of what a node exposes under a name."""
        node = self.nodes[name]
        lines = node.client.get(f"{node.ops}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(metric))

    def log(self, name: str) -> str:
        return self.nodes[name].log.read_text()


def verified(fleet: Fleet) -> dict[str, Any]:
    """Everything in the journal, verified offline."""
    node = next(iter(fleet.nodes.values()))
    verdict = node.cli("verify", "--config", str(node.config), "--full", "--output", "json")
    assert verdict["valid"], verdict
    assert verdict["verified_count"] == verdict["total_count"]
    return verdict
