"""Restore drills beside a running server: measured, verified, written down; and a backup that is bad fails one."""

from pathlib import Path

import httpx
import pytest

from tests.acceptance.server import Server
from tests.acceptance.test_workloads import GUIDE


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "one", recovery={"backup_to": str(tmp_path / "away"), "ship_interval": "50ms"})


def test_a_drill_is_measured_and_becomes_metrics_and_a_receipt(server: Server) -> None:
    try:
        server.start()
        names = [server.submit(GUIDE) for _ in range(5)]
        for name in names:
            server.wait_for(name)
        config = ("--config", str(server.config))
        server.cli("backup", "create", *config, "-o", "json")
        names.append(server.submit(GUIDE))
        server.wait_for(names[-1])

        shown = server.cli("recover", "drill", *config, "-o", "json")
        assert (shown["ok"], shown["workflows"], shown["folded"], shown["problems"]) == (True, 6, 6, [])
        assert shown["rto_seconds"] > 0
        assert shown["rpo_seconds"] < 60

        for number in (1, 2):
            recorded = server.cli("recover", "drill", "--record", "-o", "json")
            assert recorded["ok"] is True
            receipts = server.cli("receipts", "show", recorded["record"], *config, "-o", "json")["receipts"]
            assert [one["kind"] for one in receipts] == ["recovery.drilled"] * number
            assert receipts[-1]["detail"]["rto_ns"] == round(recorded["rto_seconds"] * 1e9)
        metrics = httpx.get(f"{server.ops}/metrics").text
        for name in ("drill_rto_seconds", "drill_rpo_seconds", "drill_ok 1.0", "drills_total 2.0"):
            assert f"knhk_recovery_{name}" in metrics
        assert not list(server.directory.glob("data.drill*"))
        assert server.stop() == 0
        assert server.verify()["valid"] is True  # the record is a chain like any other
        server.start()
        assert server.status(names[0])["state"] == "completed"
    finally:
        server.close()


def test_a_bad_backup_fails_the_drill_and_health_says_so(server: Server) -> None:
    try:
        server.start()
        server.wait_for(server.submit(GUIDE))
        config = ("--config", str(server.config))
        made = Path(server.cli("backup", "create", *config, "-o", "json")["url"])
        for snapshot in (server.directory / "checkpoints").iterdir():
            snapshot.rename(server.directory / f"gone-{snapshot.name}")
        damaged = next((made / "data").glob("*.sst"))
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
        shown = server.cli("recover", "drill", "--record", "-o", "json", code=1)
        assert damaged.name in shown["problems"][0]
        assert damaged.name in httpx.get(f"{server.ops}/health/detailed").json()["checks"]["recovery"]
        assert "knhk_recovery_drill_ok 0.0" in httpx.get(f"{server.ops}/metrics").text
    finally:
        server.close()


def test_drills_come_by_themselves(server: Server) -> None:
    import time

    server.close()
    scheduled = Server(
        server.directory,
        recovery={"backup_to": str(server.directory.parent / "away"), "drill_interval": "1s", "ship_interval": "50ms"},
    )
    try:
        scheduled.start()
        scheduled.wait_for(scheduled.submit(GUIDE))
        deadline = time.monotonic() + 60
        while "knhk_recovery_drill_ok 1.0" not in httpx.get(f"{scheduled.ops}/metrics").text:
            assert time.monotonic() < deadline, scheduled.log.read_text()
            time.sleep(0.1)
    finally:
        scheduled.close()
