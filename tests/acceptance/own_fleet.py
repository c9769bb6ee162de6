"""Several real nodes with a RocksDB each, and a real etcd."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from knhk.persistence.journal_check import verify_all
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.verification import Trust
from knhk.security.signing import verify
from tests.acceptance.fleet import TTL_S, Fleet
from tests.acceptance.server import Server
from tests.services.etcd import EtcdCluster


class OwnFleet(Fleet):
    """As Fleet, without PostgreSQL. `partition_of` knows which partition a node made."""

    def __init__(self, directory: Path, *, takeover: bool = False, shipped: str = "", **sections: Any) -> None:
        self.directory, self.sections = directory, sections
        self.takeover, self.shipped = takeover, shipped
        self.etcd = EtcdCluster(1).start()
        self.nodes: dict[str, Server] = {}
        self.running: set[str] = set()
        self.variables: dict[str, str] = {}

    def add(self, name: str, *, url: str = "", etcd: list[str] | None = None) -> Server:
        assert not url
        home = self.directory / name
        home.mkdir()
        node = Server(
            home,
            platform={"node_id": name},
            actions={"modules": ["tests.acceptance.crash_actions"]},
            recovery={"backup_to": self.shipped, "ship_interval": "500ms"},
            cluster={
                "mode": True,
                "etcd": etcd or self.etcd.endpoints,
                "lease_ttl": f"{TTL_S}s",
                "handover_grace": "2s",
                "takeover": self.takeover,
            },
            **self.sections,
        )
        node.variables.update(self.variables)
        self.nodes[name] = node
        return self.start(name)

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
        return sorted(self.directory.glob("*/data/partitions/[0-9]*"))

    def verify(self, directories: list[Path]) -> int:
        """Every journal, verified offline; how many runs they have together."""
        return sum(asyncio.run(_verified(path)) for path in directories)

    def get(self, name: str, target: str) -> httpx.Response:
        return self.nodes[name].client.get(target)


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
