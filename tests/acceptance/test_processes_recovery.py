"""A server of several processes is backed up, drilled, lost and restored as a whole, by an operator's commands."""

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.acceptance.acknowledged import until
from tests.acceptance.server import Server
from tests.acceptance.test_processes import everywhere
from tests.guide.test_disaster_recovery import SCRIPT, need


def shipped(server: Server) -> bool:
    """Whether all that is committed has arrived, of both processes."""
    texts = [httpx.get(f"{server.ops}/processes/{number}/metrics", timeout=30).text for number in (0, 1)]
    return all("\nknhk_recovery_ship_lag_seconds 0.0" in text for text in texts)


@pytest.mark.timeout(400)
def test_all_partitions_come_back(tmp_path: Path) -> None:
    """The backup is that of deploy/backup/knhk-backup.sh; what came after it was shipped by each process."""
    need("bash", "curl", "rsync", "flock")
    away = tmp_path / "away"
    server = Server(
        tmp_path / "one", platform={"processes": 2}, recovery={"backup_to": str(away), "ship_interval": "50ms"}
    )
    variables = {**os.environ, "KNHK_OPERATIONS": server.ops, "KNHK_BACKUPS": str(away), "KNHK_BACKUPS_S3": ""}
    try:
        server.start()
        names = [*everywhere(server).values()]
        for name in names:
            server.wait_for(name)
        done = subprocess.run([str(SCRIPT)], env=variables, capture_output=True, timeout=120, check=True)
        assert (Path(done.stdout.decode().strip()) / "data" / "partitions" / "1" / "CURRENT").exists()
        names += everywhere(server).values()
        for name in names:
            server.wait_for(name)
        drilled = server.cli("recover", "drill", "--record", "-o", "json")
        assert (drilled["ok"], drilled["workflows"]) == (True, drilled["folded"]), drilled
        assert drilled["workflows"] >= 4
        until(lambda: shipped(server))
        server.kill()
        shutil.rmtree(server.data)
        shutil.rmtree(server.directory / "checkpoints")
        shown = server.cli("recover", "--config", str(server.config), "-o", "json")
        assert [head["partition"] for head in shown["heads"]] == [0, 1]
        assert shown["verification"]["verified_count"] == sum(head["receipts"] for head in shown["heads"])
        server.start()
        for name in names:
            assert server.status(name)["state"] == "completed"
    finally:
        server.close()
