"""Keys of a running server: turning encryption on, rotation, erasure; each also with SIGKILL in the middle."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.acceptance.acknowledged import until
from tests.acceptance.server import Server

SECRET = "Katherine Johnson, 26 August 1918"
WORKFLOW = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: admits, department: {department}}}
spec:
  steps:
    - {{name: a, action: process, params: {{output: {{patient: "{secret}", more: "{more}"}}}}}}
"""

WAITING = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: waits, department: cardiology}
spec: {steps: [{name: nap, action: wait, params: {duration: 1h}}]}
"""


def workflow(department: str = "cardiology", more: str = "") -> str:
    return WORKFLOW.format(department=department, secret=SECRET, more=more)


def configured(server: Server, **persistence: Any) -> None:
    """Change the configuration, for the next start."""
    config = yaml.safe_load(server.config.read_text())
    config["persistence"].update(persistence)
    server.config.write_text(yaml.safe_dump(config))


def keys(server: Server) -> dict[str, Any]:
    return dict(server.client.get("/keys").json())


def on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file())


def many(server: Server, count: int, department: str = "cardiology") -> list[str]:
    runs = [server.submit(workflow(department, f"{number} " + "x" * 600)) for number in range(count)]
    for run in runs:
        server.wait_for(run)
    return runs


def good(server: Server, runs: list[str]) -> None:
    """All verifies offline with the key, and every run can be read."""
    report = server.verify()
    assert (report["valid"], report["locked"]) == (True, 0), report["problems"]
    assert report["verified_count"] == report["total_count"]
    for run in runs:
        assert server.status(run, verbose=True)["outputs"]["a"]["patient"] == SECRET


def test_turning_encryption_on_rewrites_what_was_in_clear_and_survives_being_killed(tmp_path: Path) -> None:
    server = Server(tmp_path, persistence={"path": str(tmp_path / "data"), "compression": False})
    try:
        server.start()
        runs = many(server, 60)
        assert keys(server) == {"encryption": False, "key_encryption_key": None, "generations": []}
        assert server.cli("keys", "rotate", code=5) == {}
        assert server.stop() == 0
        assert SECRET.encode() in on_disk(server.data)

        configured(server, encryption=True, maintenance_rate="2KB")
        server.start()
        shown = keys(server)["reencryption"]
        assert shown["state"] == "under way"
        assert shown["still_in_clear_or_older"]
        for _ in range(2):
            server.kill()
            server.start()
        runs += many(server, 3)
        server.kill()
        configured(server, maintenance_rate="100MB")
        server.start()
        until(lambda: keys(server)["reencryption"]["state"] == "complete")
        assert keys(server)["reencryption"]["rows_damaged"] == 0
        assert keys(server)["reencryption"]["percent"] == 100
        assert keys(server)["reencryption"]["still_in_clear_or_older"] == []
        assert SECRET.encode() not in on_disk(server.data)
        good(server, runs)
        assert server.client.get("/workflows").json()["workflows"]
    finally:
        server.close()


def test_data_keys_are_rotated_under_load_and_old_ones_destroyed(tmp_path: Path) -> None:
    server = Server(
        tmp_path, persistence={"path": str(tmp_path / "data"), "encryption": True, "maintenance_rate": "2KB"}
    )
    try:
        server.start()
        runs = many(server, 40)
        before = tmp_path / "before"
        assert server.cli("keys", "rotate", "--output", "json")["generations"][-1]["generation"] == 2
        assert server.cli("keys", "destroy", "1", "--yes", code=5) == {}, "rows still need it"
        runs += many(server, 5)
        server.kill()
        shutil.copytree(server.data, before)
        server.start()
        assert keys(server)["reencryption"]["state"] in ("under way", "complete")
        assert server.stop() == 0
        configured(server, maintenance_rate="100MB")
        server.start()
        until(lambda: keys(server)["reencryption"]["state"] == "complete")
        good(server, runs)
        listed = server.cli("keys", "list", "--output", "json")
        assert [(one["generation"], one["state"]) for one in listed["generations"]] == [(1, "retired"), (2, "active")]
        copy = server.cli("verify", "--data", str(before), "--config", str(server.config), "--full", "--output", "json")
        assert (copy["valid"], copy["locked"]) == (True, 0), "a retired generation still opens older backups"
        server.cli("keys", "destroy", "1", "--yes", "--output", "json")
        assert server.cli("keys", "destroy", "2", "--yes", code=5) == {}
        good(server, runs)
        server.kill()
        server.start()
        good(server, runs)
    finally:
        server.close()


def test_the_key_encryption_key_is_rotated_without_a_restart(tmp_path: Path) -> None:
    server = Server(tmp_path, persistence={"path": str(tmp_path / "data"), "encryption": True})
    try:
        server.start()
        runs = many(server, 2)
        old_ring, old_key = tmp_path / "old-ring", tmp_path / "old-key"
        shutil.copy(tmp_path / "keys" / "data.keys", old_ring)
        shutil.copy(tmp_path / "keys" / "encryption.key", old_key)
        before = keys(server)["key_encryption_key"]
        after = server.cli("keys", "rotate", "--key-encryption-key", "--output", "json")["key_encryption_key"]
        assert after != before
        new_key = (tmp_path / "keys" / "encryption.key").read_text()
        assert new_key.split() != old_key.read_text().split()
        assert len(new_key.split()) == 1
        runs += many(server, 2)
        server.kill()
        # Killed between the two: the file has both keys, and the ring is still wrapped with the old one.
        (tmp_path / "keys" / "encryption.key").write_text("99" * 32 + "\n" + new_key)
        server.start()
        assert keys(server)["key_encryption_key"] not in (before, after), "the first key of the file takes over"
        good(server, runs)
        assert server.stop() == 0
        (tmp_path / "keys" / "encryption.key").write_text("99" * 32 + "\n")
        server.start()
        good(server, runs)
    finally:
        server.close()


def test_a_department_is_erased_for_every_copy_and_receipts_verify(tmp_path: Path) -> None:
    server = Server(tmp_path, persistence={"path": str(tmp_path / "data"), "encryption": True})
    try:
        server.start()
        doomed = [*many(server, 6, "cardiology")]
        kept = many(server, 3, "law")
        waiting = server.submit(WAITING)
        refused = server.client.post("/departments/erase", json={"department": "cardiology"})
        assert refused.status_code == 409
        assert waiting in refused.json()["detail"]
        server.client.post(f"/workflows/{waiting}/cancel")
        copy = tmp_path / "copy"
        server.cli("erase", "workflow", doomed[0], "--reason", "asked for", "--output", "json")
        server.kill()
        shutil.copytree(server.data, copy)
        server.start()
        shown = server.cli("erase", "department", "cardiology", "--reason", "GDPR 17", "--output", "json")
        assert shown == {"department": "cardiology", "workflows_erased": 6}
        assert server.cli("erase", "department", "cardiology", "--output", "json")["workflows_erased"] == 0
        for run in doomed:
            assert server.status(run)["erased"]
        good(server, [*kept, *many(server, 2, "cardiology")])
        receipts = server.client.get(f"/workflows/{doomed[1]}/receipts").json()["receipts"]
        assert (receipts[-1]["kind"], receipts[-1]["detail"]["reason"]) == ("payload.erased", "GDPR 17")
        arguments = ("--config", str(server.config), "--data", str(copy), "--output", "json")
        backup = server.cli("verify", "--full", *arguments)
        assert (backup["valid"], backup["missing"]) == (True, 0), backup["problems"]
        other = Server(
            tmp_path, persistence={"path": str(copy), "key_path": str(tmp_path / "keys"), "encryption": True}
        )
        assert server.stop() == 0
        other.start()
        try:
            for run in doomed[1:]:
                answer = other.client.get(f"/workflows/{run}", params={"verbose": True})
                assert (answer.status_code, answer.json()["code"]) == (404, "KNHK-3010")
            assert other.status(kept[0], verbose=True)["outputs"]["a"]["patient"] == SECRET
        finally:
            other.close()
    finally:
        server.close()


def test_erasing_a_department_without_encryption_deletes_the_rows(tmp_path: Path) -> None:
    server = Server(tmp_path, persistence={"path": str(tmp_path / "data")})
    try:
        server.start()
        doomed, kept = many(server, 3, "a/b & c"), many(server, 2, "law")
        assert server.cli("erase", "department", "a/b & c", "--output", "json")["workflows_erased"] == 3
        assert all(server.status(run, verbose=True)["erased"] for run in doomed)
        good(server, kept)
    finally:
        server.close()
