"""Full disks under everything that is no journal: snapshots, shipped segments, archives, the key ring.

Each says so, leaves nothing that could be taken for a whole one, and goes on by itself when there is room.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from knhk.bootstrap.protection import ArchivePlace, NodeProtection
from knhk.domain.errors import DiskFull
from knhk.recovery import segments, snapshots
from knhk.security.signing import verify
from tests.integration import test_retention
from tests.integration.recovering import House, until


class SmallDisk:
    """A file system of 4 MiB."""

    def __init__(self, path: Path) -> None:
        self.path, self._ballast = path, path / "ballast"

    def fill(self, leave_bytes: int = 0) -> None:
        free = os.statvfs(self.path)
        self._ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - leave_bytes)))

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.decode().strip()}")
    yield SmallDisk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_segments_wait_for_room(disk: SmallDisk, tmp_path: Path) -> None:
    house = await House(tmp_path / "one", str(disk.path / "away")).start()
    await house.run(3)
    await house.shipped()
    shipper = house.recovery.shipper
    assert shipper is not None
    shipped = shipper.cursor
    disk.fill(1024)
    runs = await house.run(5)
    await until(lambda: shipper.failures_total > 0)
    assert "o space left" in shipper._failure
    assert shipper.cursor == shipped
    for path in disk.path.rglob("*.seg"):
        segments.decode(path.read_bytes(), path.name, None, verify)  # what is there is whole
    disk.make_room()
    await house.shipped()
    await house.stop()
    house.lose()
    done = await house.restore(place=str(disk.path / "away"))
    assert done.report.valid
    await house.start()
    assert {(await house.states())[one] for one in runs} == {"completed"}
    await house.stop()


async def test_a_snapshot_without_room_is_none(disk: SmallDisk, tmp_path: Path) -> None:
    house = House(tmp_path / "one", "")
    recovery = house.config.recovery.model_copy(update={"checkpoint_path": disk.path / "checkpoints"})
    house.config = house.config.model_copy(update={"recovery": recovery})
    await house.start()
    await house.run(5)
    disk.fill(8192)
    with pytest.raises(DiskFull):
        await house.recovery.snapshots.take()
    left = disk.path / "checkpoints"
    assert not left.exists() or list(left.iterdir()) == []
    await house.run(1)
    disk.make_room()
    snapshot = await house.recovery.snapshots.take()
    assert [one.path for one in snapshots.listed(left)] == [snapshot.path]
    await house.stop()


async def test_an_archive_without_room_keeps_the_runs(disk: SmallDisk, tmp_path: Path) -> None:
    house = test_retention.House(tmp_path)
    (tmp_path / "archive").symlink_to(disk.path)
    await house.open()
    await house.run(3)
    await house.settled()
    retention = house.retention(archive=True)
    disk.fill()
    await retention._patiently(retention.run)
    assert "o space left" in retention.health()
    assert len(await house.listed()) == 3
    assert ArchivePlace(str(disk.path)).names() == []
    disk.make_room()
    await retention._patiently(retention.run)
    assert retention.health() == "ok"
    assert (await house.report()).pruned > 0
    assert len(ArchivePlace(str(disk.path)).names()) == 1
    await house.close()


async def test_a_key_ring_without_room_is_the_old_one(disk: SmallDisk, tmp_path: Path) -> None:
    house = test_retention.House(tmp_path)
    node = await house.open(encryption=True, key_path=disk.path / "keys")
    (run,) = await house.run()
    keys = NodeProtection(node).keys
    assert keys is not None
    disk.fill()
    with pytest.raises(DiskFull):
        await keys.rotate_data_keys()
    assert node.store.cipher.keys.active == 1
    with pytest.raises(DiskFull):
        await node.engine.control.erase(run, actor="test")
    assert (await node.engine.control.inspect(run))["outputs"]
    disk.make_room()
    assert await keys.rotate_data_keys() == 2
    await house.close()
    node = await house.open(encryption=True, key_path=disk.path / "keys")
    assert (await house.report()).valid
    await house.close()
