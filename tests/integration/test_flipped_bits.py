"""A flipped bit in each type of file that KNHK writes and reads again is found, and the file is named.

docs/persistence.md lists the types. The world is made once; each test damages copies of one file of it.
"""

import asyncio
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from knhk.bootstrap import open_store
from knhk.bootstrap.protection import ArchivePlace
from knhk.bootstrap.stores import key_ring
from knhk.cli.files import read_public_key
from knhk.domain.errors import KnhkError
from knhk.engine.control import Submission
from knhk.persistence.blob_area import BlobArea
from knhk.persistence.cipher import Cipher
from knhk.persistence.journal_check import verify_all
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.verification import Report, Trust
from knhk.platform.clock import SystemClock
from knhk.protection.archive import Archive, ArchiveReader, verify_archive
from knhk.protection.signing_keys import RETIRING_FILE, SigningKeys
from knhk.recovery import backups, restore, segments
from knhk.recovery.histories import Reader
from knhk.recovery.places import Place
from knhk.recovery.restore import Staging, refuse_unfinished
from knhk.security.key_ring import KeyRing
from knhk.security.signing import Ed25519Signer, public_pem, verify
from tests.integration import test_retention
from tests.integration.recovering import House

SEED = 20261124
MOST_FLIPS = 60
NAME = "20260131_120000"
NOTHING = "nothing is read from these bits"
BLOB = bytes(range(256)) * 300
WITH_BLOB = b"""
apiVersion: knhk/v1
kind: Workflow
metadata: {name: with-blob}
spec: {steps: [{name: a, action: process, params: {output: "${{ inputs.blob.size }}"}}], inputs: {blob: {type: object}}}
"""


def silent(_stage: str, _done: int, _total: int) -> None:
    pass


class World:
    """A machine after some work: its data directory and keys, a backup of it, what was shipped, an archive."""

    def __init__(self, path: Path) -> None:
        self.path, self.scratch = path, path / "scratch"
        self.house = House(path / "one", str(path / "away"), encryption=True)
        asyncio.run(self._work())
        asyncio.run(self._archive())

    async def _work(self) -> None:
        house = await self.house.start()
        sink = house.node.blobs.begin()
        sink.write(BLOB)
        submission = Submission(WITH_BLOB, {"blob": sink.finish().to_dict()})
        await house.node.engine.control.submit(submission, wait_s=30)
        await house.run(4)
        assert isinstance(house.node.store, RocksDbStore)
        house.node.store._database.flush()
        await house.run(2)
        snapshot = await house.recovery.snapshots.take()
        await house.shipped()
        backups.create(snapshot.path, Place.of(str(self.path / "away")), NAME, silent)
        keys = self.keys
        (keys / RETIRING_FILE).write_text(house.node.signer.public_key.key_id)
        (keys / "exported.pem").write_bytes(public_pem(house.node.signer.public_key))
        self.public_keys = await house.node.store.keys()
        await house.stop()
        source = restore.find(str(self.path / "away" / NAME), None, verify)
        with Staging(house.data, {"": source}, source.name).opened():
            pass
        self.receipts = await self.read(house.data)

    async def _archive(self) -> None:
        old = test_retention.House(self.path / "old")
        await old.open()
        await old.run(3)
        await old.settled()
        await old.retention(archive=True).run()
        self.trust = Trust.of(await old.node.store.keys(), verify)
        await old.close()
        place = ArchivePlace(str(self.path / "old" / "archive"))
        self.archive = place.read(place.names()[0])
        self.archived = Archive.decode(self.archive, "")

    @property
    def keys(self) -> Path:
        return self.house.directory / "keys"

    def opened(self, data: Path) -> Any:
        persistence = self.house.config.persistence.model_copy(update={"path": data})
        return open_store(self.house.config.model_copy(update={"persistence": persistence}), read_only=True)

    async def report(self, data: Path) -> Report:
        store: RocksDbStore = self.opened(data)
        try:
            scanner = store.scanner()
            scanner.verify_files()
            area = BlobArea.reader(data, store.cipher.keys)
            return await verify_all(store, scanner, Trust.of(await store.keys(), verify), silent, blobs=area)
        finally:
            await store.close()

    async def read(self, data: Path) -> list[Any]:
        store: RocksDbStore = self.opened(data)
        try:
            return [list(sealed) for _, sealed in store.scanner().scan_receipts()]
        finally:
            await store.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


Look = Callable[[World, Path], str]
"""Uses a file; what is said of it, empty if it is taken for good. Errors are said too."""


def signing_key(_: World, path: Path) -> str:
    Ed25519Signer.load_or_create(path.parent, 1)
    return ""


def retiring(world: World, path: Path) -> str:
    async def registered() -> list[Any]:
        return world.public_keys

    async def register(_: object) -> None:
        pass

    signer = Ed25519Signer.load_or_create(path.parent, 1)
    asyncio.run(SigningKeys(path.parent, signer, SystemClock(), register, registered).start())
    return ""


def ring(world: World, path: Path) -> str:
    persistence = world.house.config.persistence.model_copy(update={"key_path": path.parent})
    found = key_ring(persistence, lambda: True, may_create=False)
    assert isinstance(found, KeyRing)
    return ""


def exported_key(world: World, path: Path) -> str:
    if read_public_key(path).raw == world.public_keys[0].raw:
        return NOTHING  # in the white space of PEM
    return f"{path} is another key: what was signed does not verify with it"


def marker(world: World, path: Path) -> str:
    data = path.with_name("data")
    refuse_unfinished(data)  # the data directory is not there, as between the two renamings
    with Staging(data, {}, "x").opened():
        pass
    return ""


def backup(_: World, path: Path) -> str:
    folder = next(parent for parent in path.parents if parent.name == NAME)
    return "; ".join(backups.faults(restore.find(str(folder), None, verify), silent))


def history(_: World, path: Path) -> str:
    Reader(Place.of(str(path.parents[1])), None, verify).newest()
    return ""


def segment(_: World, path: Path) -> str:
    segments.decode(path.read_bytes(), str(path), None, verify)
    return ""


def shipped_blob(world: World, path: Path) -> str:
    """Restored from segments alone, which brings the blob too."""
    away = path.parents[2]
    house = House(world.scratch / "two", "", encryption=True)
    shutil.copytree(world.keys, house.directory / "keys", dirs_exist_ok=True)
    (house.directory / "keys" / RETIRING_FILE).unlink(missing_ok=True)
    asyncio.run(house.restore(place=str(away)))
    return ""


def archive(world: World, path: Path) -> str:
    read = Archive.decode(ArchivePlace(str(path.parent)).read(path.name), path.name)
    problems = asyncio.run(verify_archive(ArchiveReader(read, Cipher()), world.trust)).problems
    if not problems and read == world.archived and path.read_bytes() != world.archive:
        return NOTHING  # zstd has bits that say nothing
    return "; ".join(problems)


def store(world: World, path: Path) -> str:
    data = world.scratch / "one" / "data"
    report = asyncio.run(world.report(data))
    if report.valid:
        assert asyncio.run(world.read(data)) == world.receipts, f"{path} is another, and nobody was told"
        return NOTHING
    return "; ".join(report.problems)


KINDS: list[tuple[str, str, Look, int]] = [
    ("the signing key", "one/keys/signing.pem", signing_key, 400),
    ("the note of a key that is being replaced", f"one/keys/{RETIRING_FILE}", retiring, 128),
    ("the key ring", "one/keys/data.keys", ring, 400),
    ("the key-encryption key", "one/keys/encryption.key", ring, 300),
    ("an exported public key", "one/keys/exported.pem", exported_key, 300),
    ("the marker of a restore", "one/data.recovery.json", marker, MOST_FLIPS),
    ("the manifest", f"away/{NAME}/data/snapshot.json", backup, MOST_FLIPS),
    ("the manifest's signature", f"away/{NAME}/data/snapshot.json.sig", backup, 300),
    *(
        (f"{kind} in a backup", f"away/{NAME}/data/{kind}", backup, 4)
        for kind in ("*.sst", "MANIFEST-*", "CURRENT", "OPTIONS-*", "journal.head", "blobs/data/*/*")
    ),
    ("a history", "away/histories/*.json", history, MOST_FLIPS),
    ("the signature of a history", "away/histories/*.sig", history, 300),
    ("a segment", "away/segments/*/*/*.seg", segment, MOST_FLIPS),
    ("a shipped blob", "away/blobs/*/*", shipped_blob, 2),
    ("an archive", "old/archive/*.knhk-archive", archive, 200),
    ("data", "one/data/*.sst", store, 4),
    ("the log", "one/data/*.log", store, 4),
    ("the list of the files", "one/data/MANIFEST-*", store, 4),
    ("the name of the list", "one/data/CURRENT", store, 4),
    ("where the journal ends", "one/data/journal.head", store, 4),
    ("a blob", "one/data/blobs/data/*/*", store, 4),
]


def flips(raw: bytes, count: int) -> Iterator[tuple[int, int]]:
    """Places of bits: all of them if there are not more than `count`, else so many, the first bytes among them."""
    rng = random.Random(SEED)
    bits = range(8 * len(raw))
    chosen = (
        bits if len(bits) <= count else sorted({*range(0, min(len(bits), count // 2), 5), *rng.sample(bits, count)})
    )
    return ((bit // 8, 1 << bit % 8) for bit in chosen)


@pytest.mark.parametrize(("pattern", "look", "count"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_a_flipped_bit_is_found_and_the_file_is_named(world: World, pattern: str, look: Look, count: int) -> None:
    original = max(world.path.glob(pattern), key=lambda path: path.stat().st_size)
    whole = world.path / original.relative_to(world.path).parts[0]
    copy = world.scratch / whole.name
    shutil.rmtree(world.scratch, ignore_errors=True)
    shutil.copytree(whole, copy)
    if look is marker:
        shutil.rmtree(copy / "data")
    path, raw = copy / original.relative_to(whole), original.read_bytes()
    assert _said(world, look, path) in ("", NOTHING), "it is good as it is"
    for at, bit in flips(raw, count):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :])
        path.chmod(original.stat().st_mode)
        said = _said(world, look, path)
        if not said and look is ring:  # in upper case, or with other white space
            assert path.read_text().split()[0].lower() == raw.decode().split()[0]
            continue
        assert said, f"{path.name}: byte {at}, bit {bit} was taken for good"
        named = [path.name, "wf-", "block", str(copy), NOTHING]
        assert any(name in said for name in named), f"{path.name} is not named in: {said}"


def _said(world: World, look: Look, path: Path) -> str:
    try:
        return look(world, path)
    except KnhkError as error:
        return error.message
