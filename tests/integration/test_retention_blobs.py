"""Blobs of pruned runs on a real store: archived before the runs go, and gone from the area after them."""

import pytest

from knhk.actions.blob_access import AreaAccess
from knhk.bootstrap.protection import ArchivePlace
from knhk.domain.errors import BlobNotFound, KnhkError
from knhk.domain.units import DAY
from knhk.engine.control import Submission
from knhk.persistence.verification import Trust
from knhk.protection.archive import Archive, ArchiveReader, verify_archive
from knhk.protection.blob_archive import ArchivedBlobs, BlobArchive
from knhk.protection.blobs import BlobCare
from knhk.security.signing import verify
from tests.integration.retaining import House, Later

KEEPS = b"""
apiVersion: knhk/v1
kind: Workflow
metadata: {name: keeps}
spec:
  inputs: {text: {type: object}}
  steps: [{name: pass, action: process, params: {output: "${{ inputs.text }}"}}]
"""


@pytest.mark.parametrize("encryption", [False, True])
async def test_blobs_are_archived_before_their_runs_go(house: House, encryption: bool) -> None:
    node = await house.open(encryption=encryption, blobs={"path": str(house.path / "blobs")} if house.url else {})
    content, area = b"sorted\n" * 100_000, node.area
    access = AreaAccess(area)
    old, unused = access.put(content, "text/plain"), access.put(b"unused")
    submitted = Submission(KEEPS, {"text": old.to_dict()})
    run = (await node.engine.control.submit(submitted, wait_s=60)).workflow_id
    await house.settled()
    assert (await house.retention(archive=True).run())["workflows"] == 1
    care = BlobCare(
        area,
        node.keeper,
        node.store,
        Later(node.clock),
        grace_ns=DAY,
        archive=BlobArchive(area, lambda: ArchivePlace(str(house.path / "archive"))),
        bytes_per_s=1 << 40,
    )
    assert area.size(old.digest), "it goes with its mark"
    assert (await care.run())["removed"] == 2
    for gone in (old, unused):
        with pytest.raises(BlobNotFound):
            area.size(gone.digest)
    place = ArchivePlace(str(house.path / "archive"))
    (name,) = place.names()
    archived = ArchivedBlobs(place, node.store.cipher.keys)
    assert (archived.has(old.digest), archived.has(unused.digest)) == (True, False)
    with archived.area_with(old.digest) as found:
        assert b"".join(found.pieces(old.digest)) == content
    reader = ArchiveReader(Archive.decode(place.read(name), name), node.store.cipher)
    trust = Trust.of(await node.store.keys(), verify)
    assert list(reader.runs()) == [run]
    report = await verify_archive(reader, trust, archived)
    assert report.valid, report.problems
    (file,) = [path for path in (house.path / "archive" / "blobs").rglob("*") if path.is_file()]
    assert encryption != (content in file.read_bytes())
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    assert "its blob sha256:" in (await verify_archive(reader, trust, archived)).problems[0]
    file.unlink()
    assert (await verify_archive(reader, trust, archived)).missing == 1


async def test_blobs_of_runs_that_were_archived_without_them_follow(house: House) -> None:
    node = await house.open(blobs={"path": str(house.path / "blobs")} if house.url else {})
    kept = AreaAccess(node.area).put(b"from an older version")
    await node.engine.control.submit(Submission(KEEPS, {"text": kept.to_dict()}), wait_s=60)
    await house.settled()
    retention = house.retention(archive=True)
    retention._blobs = None
    assert (await retention.run())["workflows"] == 1
    blobs = BlobArchive(node.area, lambda: ArchivePlace(str(house.path / "archive")))
    clock = Later(node.clock)
    care = BlobCare(node.area, node.keeper, node.store, clock, grace_ns=DAY, archive=blobs, bytes_per_s=1 << 40)
    assert (await care.run())["removed"] == 1
    assert ArchivedBlobs(ArchivePlace(str(house.path / "archive")), None).has(kept.digest)


async def test_a_blob_that_cannot_be_archived_keeps_its_run(house: House) -> None:
    node = await house.open(blobs={"path": str(house.path / "blobs")} if house.url else {})
    kept = AreaAccess(node.area).put(b"kept")
    await node.engine.control.submit(Submission(KEEPS, {"text": kept.to_dict()}), wait_s=60)
    await house.settled()
    (house.path / "archive").mkdir()
    (house.path / "archive" / "blobs").write_text("a file where there ought to be a folder")
    with pytest.raises(KnhkError):
        await house.retention(archive=True).run()
    assert len(await house.listed()) == 1
    assert (await house.report()).valid
