"""Snapshots of a real store: consistent under load, signed, pruned, and damage in them is found and named."""

import asyncio
import random
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from knhk.bootstrap import Node
from knhk.bootstrap.recovery import NodeRecovery
from knhk.config import Config, Persistence, Recovery
from knhk.domain.errors import BackupCorrupt, KnhkError, StorageUnavailable
from knhk.persistence.rocksdb import RocksDbStore
from knhk.platform.clock import SystemClock
from knhk.ports.append import Payload
from knhk.recovery import manifest as manifests
from knhk.recovery.durable_files import leased, taken
from knhk.recovery.manifest import MANIFEST_FILE, SIGNATURE_FILE
from knhk.recovery.snapshot_duty import SnapshotDuty
from knhk.recovery.snapshots import Snapshot, Snapshots, listed, prune, remove_leftovers
from knhk.security.signing import Ed25519Signer, verify
from tests.builders import CommitBuilder, workflow_id
from tests.integration.test_rocksdb_damage import OPTIONS

SIGNER = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))), 1)


class Written:
    """A store that is written to, and its snapshots."""

    def __init__(self, directory: Path, store: RocksDbStore, builder: CommitBuilder) -> None:
        self.store, self.builder, self.clock = store, builder, SystemClock()
        self.snapshots = Snapshots(directory / "checkpoints", store, store, SIGNER, self.clock, "node-1")
        self.written = 0

    async def write(self, commits: int) -> None:
        for _ in range(commits):
            run = workflow_id(self.written // 3)
            payload = Payload(self.written % 3, 1, b"payload %d " % self.written * 40)
            await self.store.append(self.builder.commit([self.builder.slice(run, 1, [payload])], live=[run]))
            self.written += 1


@pytest.fixture
async def written(tmp_path: Path) -> AsyncIterator[Written]:
    store = RocksDbStore.open(tmp_path / "data", OPTIONS)
    await store.register_key(SIGNER.public_key)
    yield Written(tmp_path, store, CommitBuilder(await store.acquire(0)))
    await store.close()


async def blocks_in(snapshot: Snapshot) -> int:
    copy = RocksDbStore.open(snapshot.path, OPTIONS, read_only=True)
    try:
        head = await copy.head(0)
        assert head is not None
        assert head.hash().hex() == snapshot.manifest.heads[0].block_hash
        return head.block().height + 1
    finally:
        await copy.close()


async def test_a_snapshot_under_load_holds_all_that_was_committed_before_it(written: Written) -> None:
    await written.write(5)
    writing = asyncio.create_task(written.write(400))
    for _ in range(4):
        before = written.written
        snapshot = await written.snapshots.take()
        assert before <= await blocks_in(snapshot) == snapshot.height + 1
        assert snapshot.manifest.heads[0].receipts == snapshot.height + 1
        assert list(manifests.faults(snapshot.path, snapshot.manifest)) == []
    await writing
    assert [one.path for one in listed(written.snapshots.directory)] == sorted(
        one.path for one in listed(written.snapshots.directory)
    )


async def test_the_manifest_is_signed_and_any_change_of_it_shows(written: Written) -> None:
    await written.write(3)
    snapshot = await written.snapshots.take()
    raw = (snapshot.path / MANIFEST_FILE).read_bytes()
    signature = (snapshot.path / SIGNATURE_FILE).read_bytes()
    key = SIGNER.public_key
    assert manifests.objection(raw, signature, {key.key_id: key}, verify) == ""
    assert manifests.objection(raw, signature, None, verify) == ""
    assert "does not verify" in manifests.objection(raw.replace(b"node-1", b"node-2"), signature, None, verify)
    other = Ed25519Signer(Ed25519PrivateKey.generate(), 1).public_key
    assert "not among" in manifests.objection(raw, signature, {other.key_id: other}, verify)
    assert "cannot be read" in manifests.objection(raw, signature[:-5], None, verify)


async def test_a_flipped_bit_a_cut_a_missing_and_a_foreign_file_are_found_and_named(
    written: Written, tmp_path: Path
) -> None:
    await written.write(40)
    written.store._database.flush()
    await written.write(3)
    snapshot = await written.snapshots.take()
    rng = random.Random(5)
    kinds = {one.path.partition("-")[0].rpartition(".")[2] for one in snapshot.manifest.files}
    assert {"sst", "MANIFEST", "CURRENT", "OPTIONS", "head"} <= kinds
    for entry in snapshot.manifest.files:
        copy = tmp_path / "copy"
        shutil.copytree(snapshot.path, copy)
        path = copy / entry.path
        if entry.size:
            raw = bytearray(path.read_bytes())
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            path.write_bytes(raw)
            assert [one.partition(" ")[0] for one in manifests.faults(copy, snapshot.manifest)] == [entry.path]
            path.write_bytes(raw[:-1])
            assert [one.partition(" ")[0] for one in manifests.faults(copy, snapshot.manifest)] == [entry.path]
        path.unlink()
        assert list(manifests.faults(copy, snapshot.manifest)) == [f"{entry.path} is missing"]
        shutil.rmtree(copy)
    (snapshot.path / "999999.log").write_bytes(b"more")
    assert list(manifests.faults(snapshot.path, snapshot.manifest)) == ["999999.log is not in the manifest"]


def test_a_manifest_cannot_lead_out_of_its_directory() -> None:
    raw = (
        b'{"format":1,"store_format":1,"version":"5","node_id":"n","made_at_ns":1,"heads":[],'
        b'"files":[{"path":"../x","size":1,"sha256":""}]}'
    )
    with pytest.raises(BackupCorrupt, match="outside"):
        manifests.decode(raw, "snapshot.json")
    with pytest.raises(BackupCorrupt, match="not the manifest"):
        manifests.decode(raw[:40], "snapshot.json")


async def test_the_oldest_go_first_and_one_in_use_stays(written: Written) -> None:
    taken_now = []
    for _ in range(5):
        await written.write(1)
        taken_now.append((await written.snapshots.take()).path)
        await asyncio.sleep(0.002)
    with leased(taken_now[1]):
        assert prune(written.snapshots.directory, 2) == [taken_now[0], taken_now[2]]
        assert [one.path for one in listed(written.snapshots.directory)] == [taken_now[1], *taken_now[3:]]
    assert prune(written.snapshots.directory, 2) == [taken_now[1]]
    assert sorted(written.snapshots.directory.iterdir()) == taken_now[3:]


async def test_the_shell_can_lease_one_too(written: Written) -> None:
    flock = shutil.which("flock")
    if flock is None:
        pytest.skip("flock (util-linux) is not installed")
    await written.write(1)
    path = (await written.snapshots.take()).path
    holder = subprocess.Popen([flock, "-s", str(path), "sh", "-c", "echo held; read line"], stdin=-1, stdout=-1)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert prune(written.snapshots.directory, 0) == []
    holder.communicate(b"done\n", timeout=30)
    assert prune(written.snapshots.directory, 0) == [path]


async def test_a_snapshot_that_fails_leaves_nothing(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    await written.write(1)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifests, "write", fail)
    with pytest.raises(KnhkError, match="No space left"):
        await written.snapshots.take()
    assert list(written.snapshots.directory.iterdir()) == []


async def test_what_a_crash_left_behind_is_removed_unless_somebody_is_at_work_there(written: Written) -> None:
    await written.write(1)
    whole = (await written.snapshots.take()).path
    for name in (".making-2026-01-01T000000-000Z", ".making-2026-01-01T000000-001Z", ".pruning-x"):
        (whole.parent / name / "store").mkdir(parents=True)
    with taken(whole.parent / ".making-2026-01-01T000000-001Z") as free:
        assert free
        remove_leftovers(whole.parent)
    assert [one.name for one in whole.parent.iterdir() if one != whole] == [".making-2026-01-01T000000-001Z"]
    await written.snapshots.start()
    assert list(whole.parent.iterdir()) == [whole]


async def test_the_duty_takes_snapshots_while_there_is_something_new(written: Written) -> None:
    duty = SnapshotDuty(written.snapshots, written.store, written.clock, partition=0, interval_ns=20_000_000, keep=2)
    await written.write(1)
    await duty.start()
    try:
        for _ in range(4):
            before = duty.taken_total
            await written.write(1)
            await _until(lambda before=before: duty.taken_total > before)  # type: ignore[misc]
        await _until(lambda: len(listed(written.snapshots.directory)) <= 2)
        await _until(lambda: listed(written.snapshots.directory)[-1].height == written.written - 1)
        settled = duty.taken_total
        await asyncio.sleep(0.2)
        assert duty.taken_total == settled
        assert duty.health() == "ok"
        assert duty.figures()["snapshots_total"] == settled
    finally:
        await duty.stop()


async def test_the_duty_says_that_snapshots_fail_and_goes_on(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_target: Path) -> int:
        raise StorageUnavailable("the disk is gone")

    await written.write(1)
    duty = SnapshotDuty(written.snapshots, written.store, written.clock, partition=0, interval_ns=20_000_000, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(written.store, "checkpoint", broken)
        await duty.start()
        await _until(lambda: "the disk is gone" in duty.health())
    await _until(lambda: duty.health() == "ok")
    assert duty.taken_total == 1
    await duty.stop()


async def test_a_node_is_given_its_snapshots_by_the_configuration(tmp_path: Path) -> None:
    node = Node(Config(persistence=Persistence(path=tmp_path / "data"), recovery=Recovery(max_snapshots=1)))
    await node.start()
    try:
        duty = NodeRecovery(node).snapshots
        for _ in range(2):
            snapshot = await duty.take()
        assert [one.path for one in listed(tmp_path / "checkpoints")] == [snapshot.path]
        assert snapshot.manifest.node_id == node.config.platform.node_id
    finally:
        await node.stop()


async def _until(good: object) -> None:
    async with asyncio.timeout(30):
        while not good():  # type: ignore[operator]
            await asyncio.sleep(0.01)
