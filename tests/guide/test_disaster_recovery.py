"""The guide's section on disaster recovery: its script and its commands, with paths and hosts of the test."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.server import ROOT
from tests.acceptance.test_workloads import GUIDE
from tests.guide.conftest import GuideServer
from tests.services.s3 import S3

SCRIPT = ROOT / "deploy" / "backup" / "knhk-backup.sh"


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; scripts/environment brings rsync if it runs as root")


def backup(server: GuideServer, s3: S3 | None, code: int = 0) -> Path:
    """Run the backup script as cron would; the directory of the backup."""
    need("bash", "curl", "rsync", "flock")
    environment = {
        **os.environ,
        "KNHK_OPERATIONS": server.ops,
        "KNHK_BACKUPS": str(server.directory / "backup"),
        "KNHK_BACKUPS_S3": "" if s3 is None else s3.bucket("knhk-backups"),
        **({} if s3 is None else s3.variables),
    }
    done = subprocess.run([str(SCRIPT)], env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr.decode()
    return Path(done.stdout.decode().strip())


def submitted(server: GuideServer, count: int) -> list[str]:
    names = []
    for _ in range(count):
        answer = server.client.post("/workflows", content=GUIDE, params={"wait": "20s"}).json()
        assert answer["state"] == "completed"
        names.append(answer["workflow_id"])
    return names


def test_from_a_snapshot(fresh: GuideServer) -> None:
    fresh.start()
    before = submitted(fresh, 5)
    directory = backup(fresh, None)
    after = submitted(fresh, 1)
    assert list(directory.parent.glob("[!.]*")) == [directory]

    fresh.cli("recover", "--snapshot", str(directory), code=5)  # a server holds the data directory
    assert fresh.stop() == 0
    shown = fresh.cli("recover", "--snapshot", str(directory), "-o", "json")
    assert shown["verification"]["valid"] is True
    assert shown["verification"]["verified_count"] == shown["heads"][0]["receipts"]
    assert len(shown["missing"]) == 1  # the run after the backup
    assert "partition 0" in shown["missing"][0]
    assert fresh.cli("verify", "--data", shown["old_data"], "-o", "json")["valid"] is True

    fresh.start()
    for name in before:
        assert fresh.status(name)["state"] == "completed"
    assert fresh.client.get(f"/workflows/{after[0]}").status_code == 404
    submitted(fresh, 1)
    assert fresh.stop() == 0
    assert fresh.verify()["valid"] is True


FROM_SNAPSHOT = """
# Stop platform
systemctl stop knhk

# Restore from snapshot
knhk recover --snapshot /backup/knhk/20240115_120000

# Start platform
systemctl start knhk
"""
FROM_SCRATCH = """
# Initialize new instance
knhk init --config /etc/knhk/config.yaml

# Restore from S3
aws s3 sync s3://knhk-backups/latest/ /var/lib/knhk/

# Verify integrity
knhk verify --data /var/lib/knhk/data

# Start platform
systemctl start knhk
"""
SYSTEMCTL = """#!/bin/sh
# Does what systemd does with the guide's unit: starts `knhk --config FILE`, and sends SIGTERM and waits.
case "$1 $2" in
    "start knhk") {python} -m knhk --config "$KNHK_CONFIG" >>server.log 2>&1 & echo $! >pid ;;
    "stop knhk") kill "$(cat pid)" && while [ -e "/proc/$(cat pid)/exe" ]; do sleep 0.1; done; rm pid ;;
    *) exit 2 ;;
esac
"""


def typed(server: GuideServer, text: str, **names: str) -> str:
    """Commands of the guide, as they stand there but for paths and names of this test; what they print.

    `systemctl` is a stand-in, and `knhk` is this Python's.
    """
    tools = server.directory / "bin"
    tools.mkdir(exist_ok=True)
    for name, content in (
        ("systemctl", SYSTEMCTL.format(python=sys.executable)),
        ("knhk", f'#!/bin/sh\nexec {sys.executable} -m knhk "$@"\n'),
    ):
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)
    places = {"/var/lib/knhk": str(server.directory), "/etc/knhk/config.yaml": str(server.config), **names}
    for written, here in places.items():
        text = text.replace(written, here)
    variables = {**server.environment(), "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", text], cwd=server.directory, env=variables, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.timeout(400)
def test_the_procedures_word_by_word(fresh: GuideServer, tmp_path: Path, s3: S3) -> None:
    """From a snapshot on the same machine, and from scratch on another one, which has the guide's file alone."""
    need("aws")
    other = GuideServer(tmp_path / "other")
    try:
        _procedures(fresh, other, s3)
    finally:
        other.close()
        for server in (fresh, other):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((server.directory / "pid").read_text()), signal.SIGKILL)


def _procedures(fresh: GuideServer, other: GuideServer, s3: S3) -> None:
    typed(fresh, "systemctl start knhk")
    fresh.wait_ready()
    names = submitted(fresh, 4)
    directory = backup(fresh, s3)
    later = submitted(fresh, 1)
    typed(fresh, FROM_SNAPSHOT, **{"/backup/knhk/20240115_120000": str(directory)})
    fresh.wait_ready()
    assert [fresh.status(name)["state"] for name in names] == ["completed"] * 4
    assert fresh.client.get(f"/workflows/{later[0]}").status_code == 404
    typed(fresh, "systemctl stop knhk")

    other.variables |= s3.variables
    assert "receipts verified" in typed(other, FROM_SCRATCH)
    other.wait_ready()
    assert [other.status(name)["state"] for name in names] == ["completed"] * 4
    submitted(other, 1)
    typed(other, "systemctl stop knhk")


def test_a_copy_from_s3_that_is_not_whole_is_named_and_does_not_start(fresh: GuideServer) -> None:
    fresh.start()
    submitted(fresh, 3)
    directory = backup(fresh, None)
    assert fresh.stop() == 0
    shutil.rmtree(fresh.data)
    shutil.copytree(directory / "data", fresh.data)
    lost = next(path for path in fresh.data.iterdir() if path.suffix == ".sst")
    lost.unlink()
    report = fresh.cli("verify", "--data", str(fresh.data), "-o", "json", code=1)
    assert any(f"{lost.name} is missing" in problem for problem in report["problems"])
    with pytest.raises(AssertionError, match=rf"ended with 7:(.|\n)*{lost.name} is missing"):
        fresh.start()


def test_the_backup_of_another_directory_needs_the_backup_alone(fresh: GuideServer, tmp_path: Path, s3: S3) -> None:
    """Restored from S3 by the command itself, where no key and no store of the first machine is."""
    need("aws")
    fresh.start()
    names = submitted(fresh, 3)
    directory = backup(fresh, s3)
    fresh.kill()
    other = GuideServer(tmp_path / "other")
    other.variables |= s3.variables
    try:
        shown = other.cli("recover", "--snapshot", f"s3://knhk-backups/{directory.name}", "-o", "json")
        assert shown["verification"]["valid"] is True
        assert (shown["old_data"], shown["missing"]) == (None, [])
        other.start()
        assert [other.status(name)["state"] for name in names] == ["completed"] * 3
    finally:
        other.close()


def test_a_copy_of_a_live_data_directory_is_taken_only_if_it_is_whole(fresh: GuideServer) -> None:
    """What the guide's own script makes: rsync of the data directory of a running server."""
    need("rsync")
    fresh.start()
    submitted(fresh, 5)
    copy = fresh.directory / "backup" / "20240115_120000"
    copy.mkdir(parents=True)
    subprocess.run(["rsync", "-a", f"{fresh.data}/", f"{copy}/data/"], check=True, timeout=60)
    assert fresh.stop() == 0
    before = contents(fresh.data)
    shown = fresh.cli("recover", "--snapshot", str(copy), "-o", "json")
    assert "no manifest" in shown["remarks"][0]
    assert shown["verification"]["valid"] is True

    # Torn: the log was copied before its end was written, and journal.head after that.
    (log,) = (path for path in (copy / "data").glob("*.log") if path.stat().st_size)
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    before = contents(fresh.data)
    fresh.cli("recover", "--snapshot", str(copy), code=7)
    assert contents(fresh.data) == before


def test_a_tampered_backup_is_refused_and_nothing_is_changed(fresh: GuideServer) -> None:
    fresh.start()
    submitted(fresh, 3)
    directory = backup(fresh, None)
    assert fresh.stop() == 0
    before = contents(fresh.data)
    rng = random.Random(11)
    for name in ("snapshot.json", "CURRENT", "journal.head"):  # each kind of file: tests/integration/test_recover.py
        path = directory / "data" / name
        raw = path.read_bytes()
        flipped = bytearray(raw)
        flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        said = _refused(fresh, directory)
        assert path.name in said or path.name.startswith("snapshot.json"), said
        path.write_bytes(raw)
    assert contents(fresh.data) == before
    assert not fresh.data.with_name("data.recovering").exists()


def _refused(server: GuideServer, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "knhk", "recover", "--snapshot", str(directory)],
        capture_output=True,
        env=server.environment(),
        cwd=server.directory,
        timeout=60,
        check=False,
    )
    assert done.returncode == 7, done.stderr.decode()
    return done.stderr.decode()


def contents(directory: Path) -> dict[str, Any]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name not in ("LOCK", "LOG"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_the_script_says_that_there_is_no_server_and_leaves_nothing(fresh: GuideServer) -> None:
    backup(fresh, None, code=1)
    assert list((fresh.directory / "backup").glob("[!.]*")) == []


def test_the_script_keeps_30_days(fresh: GuideServer) -> None:
    fresh.start()
    submitted(fresh, 1)
    kept = fresh.directory / "backup"
    for name, days in (("20200101_000000", 31), ("20200102_000000", 29), ("of-somebody-else", 99)):
        (kept / name).mkdir(parents=True)
        subprocess.run(["touch", "-d", f"{days} days ago", str(kept / name)], check=True)
    made = backup(fresh, None)
    assert sorted(path.name for path in kept.glob("[!.]*")) == sorted(
        [
            "20200102_000000",
            made.name,
            "of-somebody-else",
        ]
    )


def test_the_script_is_clean() -> None:
    beside = Path(shutil.which("shellcheck") or ROOT / ".venv" / "bin" / "shellcheck")
    if not beside.exists():
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([str(beside), str(SCRIPT)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.decode()
