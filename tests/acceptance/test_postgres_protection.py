"""A server on PostgreSQL: its data encrypted, rotated, erased and pruned; its database lost, and restored elsewhere."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.acknowledged import until
from tests.acceptance.server import Server
from tests.services.postgres import PostgresServer, shared_server

SECRET = "Doris-Wilkins-4711"
WORKFLOW = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: intake, department: cardiology}
spec:
  inputs: {number: {type: string, default: ""}}
  steps:
    - {name: a, action: process, params: {output: {patient: SECRET}}}
""".replace("SECRET", SECRET)


class House:
    """A server on a database of its own."""

    def __init__(self, path: Path, **persistence: Any) -> None:
        self.postgres: PostgresServer = shared_server()
        self.url = self.postgres.new_database()
        where = {"url": self.url, "path": str(path / "data"), "compression": False}
        recovery = {"backup_to": str(path / "away"), "ship_interval": "50ms"}
        self.server = Server(path, persistence={**where, **persistence}, recovery=recovery)

    def configure(self, **persistence: Any) -> None:
        config = yaml.safe_load(self.server.config.read_text())
        config["persistence"].update(persistence)
        self.server.config.write_text(yaml.safe_dump(config))

    def stored(self) -> str:
        """Every row of the database that users' data can be in, as text."""
        texts = [
            self.sql(f"SELECT encode({column}, 'escape') FROM knhk.{table}")
            for table, column in (
                ("receipts", "slice"),
                ("payloads", "payloads"),
                ("descriptors", "text"),
                ("projections", "value"),
            )
        ]
        return "\n".join(texts)

    def sql(self, text: str) -> str:
        return self.postgres.sql(text, self.url.rpartition("/")[2])

    def many(self, count: int) -> list[str]:
        runs = [self.server.submit(WORKFLOW) for _ in range(count)]
        for run in runs:
            self.server.wait_for(run)
        return runs

    def verify(self) -> dict[str, Any]:
        report = self.server.cli("verify", "--full", "--config", str(self.server.config), "--output", "json")
        assert report["valid"], report["problems"]
        return report

    def keys(self) -> dict[str, Any]:
        return dict(self.server.client.get("/keys").json())


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.server.close()


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_encryption_is_turned_on_rotated_and_erases(house: House) -> None:
    server = house.server.start()
    runs = house.many(12)
    assert server.stop() == 0
    assert SECRET in house.stored()

    house.configure(encryption=True, maintenance_rate="2KB")
    server.start()
    assert house.keys()["reencryption"]["state"] == "under way"
    server.kill()
    house.configure(maintenance_rate="100MB")
    server.start()
    until(lambda: house.keys()["reencryption"]["state"] == "complete")
    assert house.keys()["reencryption"]["rows_damaged"] == 0
    assert SECRET not in house.stored()
    assert "intake" not in house.stored()

    server.cli("keys", "rotate", "--output", "json")
    runs += house.many(3)
    until(lambda: house.keys()["reencryption"]["state"] == "complete")
    server.cli("keys", "destroy", "1", "--yes", "--output", "json")
    report = house.verify()
    assert (report["locked"], report["verified_count"]) == (0, report["total_count"])
    assert server.status(runs[0], verbose=True)["outputs"]["a"]["patient"] == SECRET

    snapshot = Path(server.cli("backup", "create", "--to", str(server.directory / "kept"), "--output", "json")["url"])
    server.cli("erase", "workflow", runs[0], "--reason", "asked")
    assert server.status(runs[0])["erased"]
    copy = server.cli("verify", "--data", str(snapshot / "data"), "--config", str(server.config), "--output", "json")
    assert copy["valid"], "what was erased later cannot be read in the copy, which still verifies"
    server.cli("erase", "department", "cardiology", "--reason", "asked")
    assert all(server.status(run)["erased"] for run in runs)
    house.verify()
    assert server.stop() == 0

    (server.data.parent / "keys" / "data.keys").rename(server.directory / "data.keys.away")
    with pytest.raises(AssertionError, match="KNHK-5010"):
        server.start()


def blocks_in(house: House) -> int:
    """How many blocks are in the database now, 0 if it has no tables yet."""
    database = house.url.rpartition("/")[2]
    tables = house.postgres.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'knhk'", database)
    return int(house.postgres.sql("SELECT count(*) FROM knhk.blocks", database)) if int(tables) else 0


@pytest.mark.timeout(240)
def test_a_lost_database_is_restored_into_another_one(house: House, tmp_path: Path) -> None:
    house.configure(encryption=True)
    server = house.server.start()
    before = house.many(5)
    server.cli("backup", "create", "--config", str(server.config), "--output", "json")
    after = house.many(5)
    height = house.sql("SELECT max(height) FROM knhk.blocks")
    until(lambda: f"knhk_recovery_shipped_height {height}.0" in server.client.get(f"{server.ops}/metrics").text)
    server.kill()
    blocks = blocks_in(house)
    total = house.verify()["total_count"]

    recover = ["recover", "--config", str(server.config), "--output", "json"]
    assert server.cli(*recover, code=5) == {}, "a database with a journal is not overwritten"
    house.url = house.postgres.new_database()
    house.configure(url=house.url)
    quick = False
    for wait_s in (0.5, 0.9):  # killed on the way, at different places
        process = subprocess.Popen([sys.executable, "-m", "knhk", *recover], env=server.environment(), cwd=tmp_path)
        time.sleep(wait_s)
        process.kill()
        process.wait(timeout=20)
        if found := blocks_in(house):
            assert found == blocks, "all or nothing"
            quick = True  # it was done before it was killed
            house.url = house.postgres.new_database()
            house.configure(url=house.url)
    done = server.cli(*recover)
    assert done["verification"]["verified_count"] == total
    assert done["data"] == house.url
    assert house.verify()["verified_count"] == total
    assert quick or not list(tmp_path.glob("data.for-database*"))
    server.start()
    for run in before + after:
        assert server.status(run, verbose=True)["outputs"]["a"]["patient"] == SECRET
    house.many(2)
    drilled = server.cli("recover", "drill", "--config", str(server.config), "--output", "json")
    assert drilled["ok"], drilled
