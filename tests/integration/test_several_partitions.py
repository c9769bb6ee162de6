"""Snapshots, backups and restores of a data directory with several partitions: all of them, or none."""

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from knhk.bootstrap import Node
from knhk.bootstrap.drills import newest_blocks
from knhk.bootstrap.partitions import config_of
from knhk.bootstrap.recovery import snapshot_offline, snapshots_of
from knhk.bootstrap.stores import open_store, store_options
from knhk.config import Config, Persistence, Recovery
from knhk.domain.errors import BackupCorrupt, NotFound
from knhk.engine.control import Submission
from knhk.persistence.rocksdb import RocksDbStore
from knhk.platform.clock import SystemClock
from knhk.recovery import backups, restore
from knhk.recovery.adopt import settle
from knhk.recovery.choosing import Known, choose
from knhk.recovery.places import Place
from knhk.recovery.recover import Recovered, recover
from knhk.recovery.whole import OF_ALL, compose
from knhk.security.signing import Ed25519Signer, verify
from tests.integration.recovering import HELLO

PARTITIONS = 3
NAME = "20260131_120000"


def silent(_stage: str, _done: int, _total: int) -> None:
    pass


class Machine:
    """A data directory of three partitions, each used by a node of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.away = path / "away"
        self.config = Config(
            persistence=Persistence(path=path / "data", key_path=path / "keys"),
            recovery=Recovery(checkpoint_path=path / "checkpoints", backup_to=str(self.away)),
        )

    @property
    def data(self) -> Path:
        return self.config.persistence.path

    async def work(self, runs: int) -> dict[int, Path]:
        """Runs in each partition, and then a snapshot of each."""
        taken = {}
        for partition in range(PARTITIONS):
            node = Node(config_of(self.config, partition), partition)
            await node.start()
            for number in range(runs + partition):
                await node.engine.control.submit(Submission(HELLO, {"number": number}), wait_s=30)
            taken[partition] = (await snapshots_of(node).take()).path
            await node.stop()
        return taken

    def recover(self, snapshot: str | None) -> Recovered:
        options = store_options(self.config.persistence)
        known = Known(self.data, self.config.recovery.checkpoint_path, str(self.away), options)
        choice = choose(known, snapshot, 0, None, verify, with_segments=False)

        def opened(path: Path) -> RocksDbStore:
            persistence = self.config.persistence.model_copy(update={"path": path})
            store = open_store(self.config.model_copy(update={"persistence": persistence}), read_only=True)
            assert isinstance(store, RocksDbStore)
            return store

        return recover(
            self.data,
            choice.parts,
            whole=choice.whole,
            pinned=None,
            check=verify,
            open_store=opened,
            now_ns=time.time_ns(),
            progress=silent,
        )

    def contents(self) -> dict[str, Any]:
        files = (path for path in self.data.rglob("*") if path.is_file() and path.name not in ("LOCK", "LOG"))
        return {str(path.relative_to(self.data)): path.read_bytes() for path in files}


class Backed(Machine):
    """One with a backup that has one, two and three runs, and one more run in each partition after it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        parts = asyncio.run(self.work(1))
        signer = Ed25519Signer.load_or_create(self.config.persistence.key_path, 1)
        self.whole = compose(parts, path / "checkpoints" / OF_ALL, signer, "node", SystemClock().now_ns())
        backups.create(self.whole.path, Place.of(str(self.away), make=True), NAME, silent)
        for leftover in parts.values():
            shutil.rmtree(leftover)  # what is composed does not need them
        asyncio.run(self._more())

    async def _more(self) -> None:
        for taken in (await self.work(1)).values():
            shutil.rmtree(taken)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Backed(tmp_path_factory.mktemp("several")).path


@pytest.fixture
def machine(made: Path, tmp_path: Path) -> Machine:
    shutil.copytree(made, tmp_path / "copy")
    return Machine(tmp_path / "copy")


def test_all_come_back_from_one_backup(machine: Machine) -> None:
    done = machine.recover(str(machine.away / NAME))
    assert [head.partition for head in done.heads] == [0, 1, 2]
    assert (done.report.valid, done.report.workflows) == (True, 1 + 2 + 3)
    assert [text.rpartition("partition ")[2][0] for text in done.missing] == ["0", "1", "2"]
    assert (Path(done.kept) / "partitions" / "2" / "CURRENT").exists()
    assert newest_blocks(machine.config) == {head.partition: head.at_ns for head in done.heads}


def test_the_newest_of_each_is_found(machine: Machine) -> None:
    """Of one partition there is a younger snapshot of its own; of the others the backup, or the snapshot of all."""
    parts = asyncio.run(machine.work(0))
    for one in (0, 2):
        shutil.rmtree(parts[one])
    shutil.rmtree(machine.data)
    done = machine.recover(None)
    assert {head.partition for head in done.heads} == {0, 1, 2}
    assert done.report.workflows == 1 + (2 + 2 + 1) + 3
    assert not (machine.data / "snapshot.json").exists()


@pytest.mark.parametrize("partition", [0, 1, 2])
def test_a_damaged_file_of_one_changes_none(machine: Machine, partition: int) -> None:
    folder = machine.away / NAME / "data" / (f"partitions/{partition}" if partition else "")
    damaged = next(folder.glob("*.sst"))
    raw = damaged.read_bytes()
    damaged.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    before = machine.contents()
    (fault,) = backups.faults(restore.find(str(machine.away / NAME), None, verify), silent)
    assert damaged.relative_to(machine.away / NAME / "data").as_posix() in fault
    with pytest.raises(BackupCorrupt, match=damaged.name):
        machine.recover(str(machine.away / NAME))
    assert machine.contents() == before
    assert not machine.data.with_name("data.recovering").exists()


def test_a_copy_that_is_not_whole_is_no_data_directory(machine: Machine) -> None:
    """As after `aws s3 sync`: the first start compares all partitions before it writes to any."""
    shutil.rmtree(machine.data)
    shutil.copytree(machine.away / NAME / "data", machine.data)
    lost = next((machine.data / "partitions" / "2").glob("*.sst"))
    raw = lost.read_bytes()
    lost.unlink()
    with pytest.raises(BackupCorrupt, match=f"partitions/2/{lost.name} is missing"):
        settle(machine.data)
    lost.write_bytes(raw)
    settle(machine.data)
    assert not (machine.data / "snapshot.json").exists()
    asyncio.run(machine.work(1))


def test_a_part_that_is_gone_makes_no_whole(machine: Machine) -> None:
    parts = asyncio.run(machine.work(0))
    shutil.rmtree(parts[1])
    parts[1].mkdir()
    directory = machine.path / "checkpoints" / OF_ALL
    before = sorted(directory.iterdir())
    signer = Ed25519Signer.load_or_create(machine.config.persistence.key_path, 1)
    with pytest.raises(NotFound, match=str(parts[1])):
        compose(parts, directory, signer, "node", SystemClock().now_ns())
    assert sorted(directory.iterdir()) == before


def test_offline(machine: Machine) -> None:
    """`knhk backup create --offline` takes all partitions."""
    snapshot = asyncio.run(snapshot_offline(machine.config))
    assert {head.partition for head in snapshot.manifest.heads} == {0, 1, 2}
    shutil.rmtree(machine.data)
    assert machine.recover(str(snapshot.path)).report.workflows == (1 + 1) + (2 + 2) + (3 + 3)
