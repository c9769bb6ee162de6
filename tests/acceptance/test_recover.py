"""The machine is lost under load, and comes back from S3; and SIGKILL at any moment of a snapshot or a restore."""

import itertools
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from knhk.domain.errors import BackupCorrupt
from knhk.recovery import segments, snapshots
from knhk.security.signing import verify
from tests.acceptance.acknowledged import until
from tests.acceptance.server import Server
from tests.acceptance.test_workloads import GUIDE
from tests.services.s3 import S3

SEED = 20260731


class Load:
    """Submits workflows without a pause, each once it knows that the one before was acknowledged."""

    def __init__(self, server: Server, threads: int = 4) -> None:
        self.acknowledged: list[tuple[float, str]] = []
        self._server, self._stopping = server, threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _work(self) -> None:
        with httpx.Client(base_url=self._server.api, timeout=30) as client:
            while not self._stopping.is_set():
                try:
                    answer = client.post("/workflows", content=GUIDE)
                except httpx.TransportError:
                    return  # killed
                if answer.status_code in (200, 202):
                    self.acknowledged.append((time.time(), answer.json()["workflow_id"]))

    def wait(self, count: int) -> None:
        until(lambda: len(self.acknowledged) >= count)


@pytest.fixture
def shipping(tmp_path: Path, s3: S3) -> Iterator[Server]:
    server = Server(
        tmp_path / "one",
        recovery={
            "backup_to": s3.bucket("disaster"),
            "ship_interval": "100ms",
            "snapshot_interval": "300ms",
            "max_snapshots": 3,
        },
    )
    server.variables |= s3.variables
    try:
        yield server
    finally:
        server.close()


def gauge(server: Server, name: str) -> float:
    text = httpx.get(f"{server.ops}/metrics", timeout=30).text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


@pytest.mark.timeout(400)
def test_the_machine_is_lost_under_load_and_nothing_that_was_shipped_is(shipping: Server) -> None:
    shipping.start()
    config = ("--config", str(shipping.config))
    with Load(shipping) as load:
        load.wait(50)
        shipping.cli("backup", "create", *config, "-o", "json")
        load.wait(len(load.acknowledged) + 50)
        until(lambda: len(snapshots.listed(shipping.directory / "checkpoints")) >= 3)
        certain = [name for _, name in load.acknowledged]
        committed = gauge(shipping, "knhk_commits_total") - 1  # the height of the newest block, read after that
        until(lambda: gauge(shipping, "knhk_recovery_shipped_height") >= committed)
        shipping.kill()
        lost_at = time.time()
    shutil.rmtree(shipping.data)
    shutil.rmtree(shipping.directory / "checkpoints")

    began = time.monotonic()
    shown = shipping.cli("recover", *config, "-o", "json")
    took_s = time.monotonic() - began
    report = shown["verification"]
    assert report["valid"] is True
    assert report["verified_count"] == report["total_count"] == shown["heads"][0]["receipts"] > 0
    assert shown["heads"][0]["height"] >= committed
    recovered_to = datetime.fromisoformat(shown["recovered_to"]).timestamp()
    shipping.start()
    kept = [name for at, name in load.acknowledged if at <= recovered_to]
    for name in dict.fromkeys([*certain, *kept]):
        shipping.wait_for(name)
    assert len(certain) >= 100
    gone = [one for one in load.acknowledged if shipping.client.get(f"/workflows/{one[1]}").status_code == 404]
    assert all(at > recovered_to for at, _ in gone), "what was committed before the last shipped block is there"
    print(f"RTO {took_s:.1f} s for {report['total_count']} receipts")
    print(f"RPO {lost_at - recovered_to:.1f} s: {len(gone)} of {len(load.acknowledged)} acknowledged workflows")
    assert shipping.stop() == 0
    assert shipping.verify()["valid"] is True


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_sigkill_during_snapshots_leaves_whole_ones_and_no_rest(tmp_path: Path, kills: int) -> None:
    server = Server(tmp_path / "one", recovery={"snapshot_interval": "1ms", "max_snapshots": 2})
    rng = random.Random(SEED)
    try:
        for _ in range(kills):
            server.start()
            with Load(server, threads=2) as load:
                load.wait(20)
                time.sleep(rng.random() * 0.3)
                server.kill()
            for snapshot in snapshots.listed(server.directory / "checkpoints"):
                assert server.cli("verify", "--data", str(snapshot.path), "-o", "json")["valid"] is True
        server.start()
        server.stop()
        left = [path.name for path in (server.directory / "checkpoints").iterdir() if path.name.startswith(".")]
        assert left == []
    finally:
        server.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_sigkill_of_the_uploader_loses_nothing_and_doubles_nothing(tmp_path: Path, kills: int) -> None:
    """At random moments under load; what is in the place is whole at each of them, and in the end it is everything."""
    away = tmp_path / "away"
    server = Server(tmp_path / "one", recovery={"backup_to": str(away), "ship_interval": "20ms"})
    rng = random.Random(SEED)
    acknowledged: list[str] = []
    try:
        for number in range(kills):
            server.start()
            with Load(server, threads=2) as load:
                load.wait(10)
                time.sleep(rng.random() * 0.4)
                server.kill()
            acknowledged += [name for _, name in load.acknowledged]
            for path in away.rglob("*.seg"):
                try:
                    segments.decode(path.read_bytes(), path.name, None, verify)
                except BackupCorrupt:  # may be left by a crash, if it was never counted as shipped
                    assert path.stat().st_mtime > time.time() - 60
            if number % 5 == 0:
                drilled = server.cli("recover", "drill", "--config", str(server.config), "-o", "json")
                assert drilled["ok"] is True, drilled
        server.start()
        for name in acknowledged:
            server.wait_for(name)
        assert server.stop() == 0  # which ships what is left
        before = server.verify()
        shutil.rmtree(server.data)
        shown = server.cli("recover", "--config", str(server.config), "-o", "json")["verification"]
        assert shown["verified_count"] == shown["total_count"] == before["total_count"] > len(acknowledged)
        heights = sorted(segments.heights_of(path.name) or (0, 0) for path in away.rglob("*.seg"))
        assert all(first == last + 1 for (_, last), (first, _) in itertools.pairwise(heights)), "each block once"
        server.start()
        assert {server.status(name)["state"] for name in acknowledged} == {"completed"}
    finally:
        server.close()


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_sigkill_during_a_restore_costs_only_the_time(shipping: Server, kills: int) -> None:
    """The same command goes on, until the restore is done; the server never starts on half of it."""
    shipping.start()
    with Load(shipping) as load:
        load.wait(100)
    made = shipping.cli("backup", "create", "--config", str(shipping.config), "-o", "json")
    assert shipping.stop() == 0
    names = [name for _, name in load.acknowledged]
    command = [sys.executable, "-m", "knhk", "recover", "--snapshot", made["url"]]
    command += ["--segments", "s3://disaster", "--config", str(shipping.config), "-o", "json"]
    rng = random.Random(SEED)
    began = time.monotonic()
    subprocess.run(command, env=shipping.environment(), check=True, capture_output=True, timeout=120)
    whole_s = time.monotonic() - began
    for _ in range(kills):
        process = subprocess.Popen(
            command, env=shipping.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(whole_s * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        if shipping.data.exists():
            assert shipping.verify()["valid"] is True  # the old or the new, and never something in between
    done = subprocess.run(command, env=shipping.environment(), check=True, capture_output=True, timeout=120)
    assert b'"valid": true' in done.stdout
    assert not shipping.data.with_name("data.recovery.json").exists()
    shipping.start()
    for name in rng.sample(names, 20):
        assert shipping.status(name)["state"] == "completed"


def test_a_restore_on_a_full_disk_changes_nothing_and_goes_on_with_room(tmp_path: Path) -> None:
    server = Server(tmp_path / "one")
    try:
        server.start()
        with Load(server, threads=2) as load:
            load.wait(200)
        snapshot = httpx.post(f"{server.ops}/checkpoint", timeout=60).json()["path"]
        assert server.stop() == 0
        size = sum(path.stat().st_size for path in Path(snapshot).iterdir())
        before = sorted(path.name for path in server.data.iterdir())
        command = [sys.executable, "-m", "knhk", "recover", "--snapshot", snapshot, "--config", str(server.config)]
        limited = f"ulimit -f {max(1, size // 4 // 1024)}; trap '' XFSZ; exec \"$@\""
        done = subprocess.run(
            ["bash", "-c", limited, "sh", *command],
            env=server.environment(),
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 6, done.stderr.decode()
        assert sorted(path.name for path in server.data.iterdir()) == before
        assert server.verify()["valid"] is True
        subprocess.run(command, env=server.environment(), check=True, capture_output=True, timeout=120)
        assert server.verify()["valid"] is True
    finally:
        server.close()
