"""A server whose data are encrypted, as an operator meets it: keys made, wrong, lost; verification with and without."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.server import Server

SECRET = "Grace Hopper, 9 December 1906"
WORKFLOW = f"""
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: admits, department: cardiology, labels: {{patient: "{SECRET}"}}}}
spec:
  steps:
    - {{name: a, action: process, params: {{output: {{patient: "{SECRET}"}}}}}}
    - {{name: b, action: process, depends_on: [a], params: {{output: "${{{{ steps.a.output }}}}"}}}}
"""


def encrypted(directory: Path, **persistence: object) -> Server:
    settings = {"path": str(directory / "data"), "encryption": True, **persistence}
    return Server(directory, persistence=settings)


def starts(server: Server) -> str:
    """What a server says that must not start; its exit code is in the text."""
    done = subprocess.run(
        [sys.executable, "-m", "knhk", *server.arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=server.environment(),
        cwd=server.directory,
    )
    return f"{done.returncode}\n{done.stdout}\n{done.stderr}"


def test_an_encrypted_server_runs_crashes_goes_on_and_leaves_nothing_readable(tmp_path: Path) -> None:
    server = encrypted(tmp_path)
    try:
        server.start()
        first = server.submit(WORKFLOW)
        server.wait_for(first)
        server.kill()
        server.start()
        assert server.status(first, verbose=True)["outputs"]["b"] == {"patient": SECRET}
        second = server.submit(WORKFLOW)
        server.wait_for(second)
        listed = server.client.get("/workflows").json()["workflows"]
        assert {row["labels"]["patient"] for row in listed} == {SECRET}
        assert server.stop() == 0
        raw = b"".join(file.read_bytes() for file in sorted(server.data.rglob("*")) if file.is_file())
        assert SECRET.encode() not in raw
        report = server.verify()
        assert (report["valid"], report["locked"]) == (True, 0)
        assert report["total_count"] == report["verified_count"]
        assert server.cli("receipts", "verify", first, "--config", str(server.config), "--output", "json")["valid"]
        copy = tmp_path / "copies" / "data"
        shutil.copytree(server.data, copy)
        arguments = ("--data", str(copy), "--full", "--output", "json")
        assert server.cli("verify", "--config", str(server.config), *arguments)["locked"] == 0
        shutil.rmtree(copy)
        other = encrypted(tmp_path / "copies").start()
        assert other.stop() == 0, "a ring of another directory now lies beside the copy"
        other.close()
        shutil.rmtree(copy)
        shutil.copytree(server.data, copy)
        foreign = server.cli("verify", *arguments)
        assert (foreign["valid"], foreign["verified_count"], foreign["locked"] > 0) == (True, 0, True)
        shutil.move(tmp_path / "keys", tmp_path / "elsewhere")
        without = server.verify()
        assert (without["valid"], without["verified_count"]) == (True, 0)
        assert without["locked"] >= without["total_count"] == report["total_count"]
        answer = server.cli("receipts", "show", first, "--data", str(server.data), code=6)
        assert answer == {}
    finally:
        server.close()


def test_a_wrong_or_lost_key_is_said_at_the_start_and_nothing_is_changed(tmp_path: Path) -> None:
    server = encrypted(tmp_path)
    try:
        server.start()
        first = server.submit(WORKFLOW)
        server.wait_for(first)
        assert server.stop() == 0
        keys = tmp_path / "keys"
        shutil.copytree(keys, tmp_path / "saved")
        before = {file.name: file.read_bytes() for file in sorted(server.data.iterdir()) if file.is_file()}

        (keys / "encryption.key").write_text("ab" * 32 + "\n")
        assert "KNHK-5010" in (said := starts(server))
        assert "is encrypted with key local:" in said
        (keys / "encryption.key").unlink()
        assert "there is no key file" in starts(server)
        (keys / "data.keys").unlink()
        assert "Put the key ring back" in starts(server)
        assert not (keys / "data.keys").exists(), "a lost ring is not replaced by a new one"

        shutil.copytree(tmp_path / "saved", keys, dirs_exist_ok=True)
        ring = keys / "data.keys"
        raw = ring.read_bytes()
        ring.write_bytes(raw[:-20])
        assert "KNHK-6010" in starts(server)
        ring.write_bytes(raw[:60] + bytes([raw[60] ^ 1]) + raw[61:])
        assert "KNHK-" in starts(server)
        ring.write_bytes(raw)
        after = {file.name: file.read_bytes() for file in sorted(server.data.iterdir()) if file.is_file()}
        assert {name: after[name] for name in before if name.endswith((".sst", ".head"))} == {
            name: raw for name, raw in before.items() if name.endswith((".sst", ".head"))
        }
        server.start()
        assert server.status(first, verbose=True)["outputs"]["b"] == {"patient": SECRET}
    finally:
        server.close()


@pytest.mark.parametrize("source", ["env", "file"])
def test_the_key_may_come_from_elsewhere(tmp_path: Path, source: str) -> None:
    key = tmp_path / "mounted.key"
    key.write_text("cd" * 32)
    key.chmod(0o600)
    setting = "env:TEST_KEK" if source == "env" else f"file:{key}"
    server = encrypted(tmp_path, encryption_key=setting)
    server.variables = {"TEST_KEK": "cd" * 32}
    try:
        server.start()
        first = server.submit(WORKFLOW)
        server.wait_for(first)
        assert server.stop() == 0
        report = server.cli("verify", "--config", str(server.config), "--full", "--output", "json")
        assert (report["valid"], report["locked"]) == (True, 0)
        server.variables = {"TEST_KEK": "ef" * 32}
        if source == "env":
            assert "KNHK-5010" in starts(server)
    finally:
        server.close()
