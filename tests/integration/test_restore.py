"""Restoring from snapshots: who signed them, and a crash in the very last step."""

import shutil
from pathlib import Path

import msgspec
import pytest

from knhk.bootstrap import open_store
from knhk.domain.errors import BackupCorrupt, Corrupt, InvalidParameter, NotFound
from knhk.recovery import manifest as manifests
from knhk.recovery import restore
from knhk.recovery.durable_files import leased
from knhk.recovery.manifest import MANIFEST_FILE
from knhk.recovery.places import Place
from knhk.recovery.restore import Staging, Unfinished
from knhk.recovery.snapshots import prune
from knhk.security.signing import Ed25519Signer, verify
from tests.integration.recovering import House


class Prepared:
    """A house with a snapshot of its runs, stopped."""

    def __init__(self, house: House, snapshot: Path) -> None:
        self.house, self.snapshot = house, snapshot


@pytest.fixture
async def prepared(tmp_path: Path) -> Prepared:
    house = await House(tmp_path / "one", "").start()
    await house.run(3)
    snapshot = (await house.recovery.snapshots.take()).path
    await house.run(1)
    await house.stop()
    return Prepared(house, snapshot)


def silent(_stage: str, _done: int, _total: int) -> None:
    pass


async def test_a_manifest_of_a_stranger_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    manifest = manifests.read(prepared.snapshot)
    assert manifest is not None
    stranger = Ed25519Signer.load_or_create(tmp_path / "stranger", 1)
    manifests.write(prepared.snapshot, manifest, stranger)
    with pytest.raises(BackupCorrupt, match="never signed this journal"):
        await prepared.house.restore(str(prepared.snapshot))
    mine = prepared.house.node.signer.public_key
    with pytest.raises(BackupCorrupt, match="not among those that are trusted"):
        await prepared.house.restore(str(prepared.snapshot), pinned=[mine])
    manifests.write(prepared.snapshot, manifest, prepared.house.node.signer)
    assert (await prepared.house.restore(str(prepared.snapshot), pinned=[mine])).report.workflows == 3


async def test_without_a_manifest_nobody_vouches(prepared: Prepared) -> None:
    (prepared.snapshot / MANIFEST_FILE).unlink()
    with pytest.raises(BackupCorrupt, match="no trusted key vouches"):
        await prepared.house.restore(str(prepared.snapshot), pinned=[prepared.house.node.signer.public_key])
    done = await prepared.house.restore(str(prepared.snapshot))
    assert "no manifest" in done.remarks[0]


async def test_a_manifest_that_promises_more_than_there_is_is_refused(prepared: Prepared) -> None:
    manifest = manifests.read(prepared.snapshot)
    assert manifest is not None
    more = msgspec.structs.replace(manifest.heads[0], height=manifest.heads[0].height + 1)
    manifests.write(prepared.snapshot, msgspec.structs.replace(manifest, heads=[more]), prepared.house.node.signer)
    with pytest.raises(BackupCorrupt, match="ends before block"):
        await prepared.house.restore(str(prepared.snapshot))


async def test_between_the_two_renamings_no_server_starts_and_the_same_command_goes_on(prepared: Prepared) -> None:
    house = prepared.house
    source = restore.find(str(prepared.snapshot), None, verify)
    with Staging(house.data, {"": source}, source.name).opened() as staging:
        staging.copy(silent)
    kept = house.data.with_name("data.before-now")
    marker = house.data.with_name("data.recovery.json")
    marker.write_bytes(Unfinished(source.name, "switching", str(kept)).encode())
    house.data.rename(kept)  # and here it dies
    with pytest.raises(Corrupt, match="interrupted in its last step"):
        open_store(house.config)
    assert not house.data.exists()
    done = await house.restore(str(prepared.snapshot))
    assert (done.kept, done.report.workflows) == (str(kept), 3)
    assert not marker.exists()
    await house.start()
    await house.stop()


async def test_an_interrupted_copy_goes_on_and_one_of_another_source_begins_anew(prepared: Prepared) -> None:
    house = prepared.house
    source = restore.find(str(prepared.snapshot), None, verify)
    with Staging(house.data, {"": source}, source.name).opened() as staging:
        staging.copy(silent)
        (staging.path / "CURRENT").write_bytes(b"half")
        staging._state.phase = "copying"
        staging._remember()
    copied: list[str] = []
    plain = restore._pieces

    def watched(*given: object) -> object:
        copied.append(str(given[1]))
        return plain(*given)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "_pieces", watched)
        assert (await house.restore(str(prepared.snapshot))).report.workflows == 3
        assert copied == ["CURRENT"]
    leftover = house.data.with_name("data.recovering")
    leftover.mkdir()
    (leftover / "999999.log").write_bytes(b"of another one")
    assert (await house.restore(str(prepared.snapshot))).report.valid


async def test_what_is_being_restored_is_not_pruned(prepared: Prepared) -> None:
    with leased(prepared.snapshot):
        assert prune(prepared.snapshot.parent, 0) == []
    assert prune(prepared.snapshot.parent, 0) == [prepared.snapshot]


async def test_what_is_no_snapshot_is_said_to_be_none(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not a snapshot"):
        restore.find(str(prepared.snapshot.parent), None, verify)
    with pytest.raises(NotFound):
        restore.find(str(tmp_path / "nowhere"), None, verify)
    with pytest.raises(InvalidParameter):
        Place.of("ftp://host/place")
    shutil.rmtree(prepared.snapshot)
