"""The blob area: what is written is there whole or not at all, and goes when nobody refers to it."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knhk.domain import payload
from knhk.domain.blob import BlobReference, digests_in
from knhk.domain.errors import (
    BlobMismatch,
    BlobNotFound,
    DataErased,
    DiskFull,
    InvalidParameter,
    PayloadTooLarge,
    ReceiptCorrupt,
)
from knhk.persistence import blob_area
from knhk.persistence.blob_area import BlobArea
from knhk.persistence.blob_cipher import CHUNK_BYTES
from tests.key_rings import key_ring

FIRST, SECOND = 1 << 30, 2 << 30
MiB = 1 << 20


class House:
    """An area, and what it is made of."""

    def __init__(self, path: Path, *, encrypted: bool) -> None:
        self.path, self.encrypted = path, encrypted
        self.numbers = iter(range(1, 10_000))
        self.now_ns = time.time_ns()
        self.area = self.open()

    def open(self, *, max_bytes: int = 64 * MiB, min_free_bytes: int = 0) -> BlobArea:
        area = BlobArea(
            self.path / "blobs",
            inline_bytes=1024,
            max_bytes=max_bytes,
            min_free_bytes=min_free_bytes,
            keys=key_ring(self.path / "keys") if self.encrypted else None,
            encrypting=self.encrypted,
            number=lambda: next(self.numbers),
            now_ns=lambda: self.now_ns,
        )
        area.open()
        return area

    def files(self) -> list[Path]:
        return [path for path in (self.path / "blobs").rglob("*") if path.is_file()]


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    return House(tmp_path, encrypted=request.param)


def put(area: BlobArea, *pieces: bytes) -> BlobReference:
    sink = area.begin()
    for piece in pieces:
        sink.write(piece)
    return sink.finish("text/plain")


def read(area: BlobArea, reference: BlobReference, start: int = 0, length: int | None = None) -> bytes:
    return b"".join(area.pieces(reference.digest, start, length))


def named(*references: BlobReference) -> list[bytes]:
    return [payload.encode({"deep": [one.to_dict() for one in references]})]


def test_what_is_written_is_read_again(house: House) -> None:
    content = os.urandom(3 * MiB + 17)
    reference = put(house.area, content[:5], content[5:MiB], content[MiB:])
    assert reference == BlobReference(f"sha256:{sha256(content).hexdigest()}", len(content), "text/plain")
    assert read(house.area, reference) == content
    assert house.area.size(reference.digest) == len(content)
    assert put(house.area, content) == reference  # again, which changes nothing
    again = house.open()
    assert read(again, reference) == content
    assert [path.stat().st_size >= len(content) for path in house.files()] == [True]
    empty = put(house.area)
    assert (empty.size, read(house.area, empty), house.area.size(empty.digest)) == (0, b"", 0)


SIZES = st.sampled_from([0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 600_000])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(size=SIZES, start=st.integers(0, 700_000), length=st.none() | st.integers(0, 700_000))
def test_any_part_can_be_read(house: House, size: int, start: int, length: int | None) -> None:
    content = bytes(index * 7 % 251 for index in range(1000)) * (size // 1000 + 1)
    content = content[:size]
    reference = put(house.area, content)
    end = None if length is None else start + length
    assert read(house.area, reference, start, length) == content[start:end]


def test_nothing_of_an_unfinished_blob_is_there(house: House) -> None:
    sink = house.area.begin()
    sink.write(b"x" * MiB)
    assert list(house.area.names()) == []
    sink.abort()
    sink.abort()
    assert house.files() == []
    sink = house.area.begin()
    sink.write(b"x")
    with pytest.raises(BlobMismatch):
        sink.finish(expected=f"sha256:{'0' * 64}")
    assert house.files() == []


def test_limits(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    area = house.open(max_bytes=10)
    sink = area.begin()
    with pytest.raises(PayloadTooLarge, match="at most 10B"):
        sink.write(b"x" * 11)
    sink.abort()
    sink = house.open(min_free_bytes=1 << 62).begin()
    with pytest.raises(DiskFull, match="less than"):
        sink.write(b"x")
    sink.abort()
    sink = house.area.begin()

    def full(_file: object, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("knhk.persistence.blob_sinks._write_all", full)
    with pytest.raises(DiskFull):
        sink.write(b"x" * 2 * CHUNK_BYTES)
    sink.abort()
    assert house.files() == []


def test_what_is_not_there(house: House) -> None:
    missing = f"sha256:{'a' * 64}"
    for call in (house.area.size, lambda digest: list(house.area.pieces(digest))):
        with pytest.raises(BlobNotFound):
            call(missing)
    with pytest.raises(InvalidParameter):
        house.area.size("../../etc/passwd")
    with pytest.raises(BlobNotFound):
        house.area.require(payload.encode({"x": {"$blob": missing, "size": 3}}))
    house.area.require(payload.encode({"x": f"$blob {missing}"}))  # only the mapping is a reference


def damaged_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def damaged_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def damaged_swap(path: Path) -> None:
    raw = path.read_bytes()
    half = len(raw) // 2
    path.write_bytes(raw[half:] + raw[:half])


@pytest.mark.parametrize("damage", [damaged_cut, damaged_bit, damaged_swap])
def test_damage_is_found_before_the_last_piece(house: House, damage: Callable[[Path], None]) -> None:
    reference = put(house.area, os.urandom(3 * MiB))
    damage(next(path for path in house.files() if path.stat().st_size > MiB))
    came: list[int] = []
    with pytest.raises(ReceiptCorrupt):
        came.extend(map(len, house.area.pieces(reference.digest)))
    assert sum(came) < reference.size


def test_encrypted_blobs_tell_nothing(tmp_path: Path) -> None:
    house = House(tmp_path, encrypted=True)
    content = b"the patient's name is Ada Lovelace" * 10_000
    reference = put(house.area, content)
    house.area.mark(FIRST, named(reference))
    names = " ".join(str(path) for path in house.files())
    assert reference.digest.removeprefix("sha256:") not in names
    assert all(b"Lovelace" not in path.read_bytes() for path in house.files())


def test_a_plain_blob_may_look_like_an_encrypted_one(tmp_path: Path) -> None:
    house = House(tmp_path, encrypted=True)
    sealed = put(house.area, b"secret")
    file = house.area.find(sealed.digest)
    assert file is not None
    plain = House(tmp_path, encrypted=False).area
    copied = put(plain, file.read_bytes())
    assert read(plain, copied) == read(house.area, copied) == file.read_bytes()


def test_plain_blobs_stay_readable_when_encryption_is_turned_on(tmp_path: Path) -> None:
    plain = put(House(tmp_path, encrypted=False).area, b"from before")
    house = House(tmp_path, encrypted=True)
    secret = put(house.area, b"from now on")
    assert (read(house.area, plain), read(house.area, secret)) == (b"from before", b"from now on")


def test_a_blob_stays_while_a_run_refers_to_it(house: House) -> None:
    used, unused, fresh = put(house.area, b"used"), put(house.area, b"unused"), put(house.area, b"fresh")
    house.area.mark(FIRST, named(used))
    later = time.time_ns() + 1
    for name in list(house.area.names()):
        if name != house.area.find(fresh.digest).name:  # type: ignore[union-attr]
            house.area.collect(name, later)
    assert [read(house.area, one) for one in (used, fresh)] == [b"used", b"fresh"]
    with pytest.raises(BlobNotFound):
        house.area.size(unused.digest)
    file = house.area.find(fresh.digest)
    assert file is not None
    os.utime(file, ns=(0, 0))
    house.area.require(named(fresh)[0])  # somebody is about to use it
    house.area.collect(file.name, time.time_ns() - 1_000_000_000)
    assert read(house.area, fresh) == b"fresh"
    name = house.area.blobs_of(FIRST)[0]
    house.area.release(FIRST)
    assert house.area.users(name) == []


def test_erasing_a_run_destroys_what_only_it_used(house: House, tmp_path: Path) -> None:
    own, shared = put(house.area, b"own" * MiB), put(house.area, b"shared")
    house.area.mark(FIRST, named(own, shared))
    house.area.mark(SECOND, named(shared))
    file = house.area.find(own.digest)
    assert file is not None
    copy = tmp_path / "copy"
    copy.write_bytes(file.read_bytes())
    house.area.begin_erasure(FIRST)
    again = house.open()  # the process died here
    assert again.erasures() == [FIRST]
    again.end_erasure(FIRST, destroy=True)
    assert (again.erasures(), again.blobs_of(FIRST)) == ([], [])
    with pytest.raises(BlobNotFound):
        again.size(own.digest)
    assert read(again, shared) == b"shared"
    if house.encrypted:  # a backup of the file cannot be read any more either
        file.write_bytes(copy.read_bytes())
        with pytest.raises(DataErased):
            read(house.open(), own)
    again.end_erasure(FIRST, destroy=True)  # again does nothing
    again.begin_erasure(SECOND)
    again.end_erasure(SECOND, destroy=False)  # it was not committed
    assert read(again, shared) == b"shared"


def test_an_erasure_leaves_what_somebody_is_about_to_use(house: House) -> None:
    reference = put(house.area, b"wanted")
    house.area.mark(FIRST, named(reference))
    house.area.require(named(reference)[0])
    house.area.begin_erasure(FIRST)
    house.area.end_erasure(FIRST, destroy=True)
    assert house.area.erasures() == [FIRST]
    house.area.mark(SECOND, named(reference))
    house.area.end_erasure(FIRST, destroy=True)
    assert (house.area.erasures(), house.area.users(house.area.blobs_of(SECOND)[0])) == ([], [SECOND])
    house.area.require(named(reference)[0])
    house.area.begin_erasure(SECOND)
    house.area.end_erasure(SECOND, destroy=True)
    assert house.area.erasures() == [SECOND]
    house.now_ns += blob_area._WANTED_NS + 1  # it was refused after all
    house.area.end_erasure(SECOND, destroy=True)
    assert house.area.erasures() == []


def test_blobs_get_the_newest_keys_and_erasing_destroys_the_older_ones_too(tmp_path: Path) -> None:
    house = House(tmp_path, encrypted=True)
    ring = key_ring(tmp_path / "keys")
    reference = put(house.area, b"patient" * 100_000)
    house.area.mark(FIRST, named(reference))
    file = house.area.find(reference.digest)
    assert file is not None
    old = file.read_bytes()
    assert house.area.renew(file.name) == 0, "it has the newest"
    ring.add_generation(1)
    area = house.open()
    assert area.generations() == {1}
    assert area.renew(file.name) == reference.size
    assert area.generations() == {2}
    assert read(area, reference) == b"patient" * 100_000
    area.begin_erasure(FIRST)
    area.end_erasure(FIRST, destroy=True)
    file.write_bytes(old)
    with pytest.raises(DataErased):
        read(house.open(), reference)


@given(
    st.lists(st.binary(min_size=32, max_size=32), max_size=3, unique=True),
    st.text(max_size=20),
)
def test_references_are_found_in_payloads(digests: list[bytes], text: str) -> None:
    references = [BlobReference(f"sha256:{one.hex()}", 3) for one in digests]
    value = {text: [one.to_dict() for one in references], "other": f"$blob sha256:{'0' * 64}", "$": {"$blob": text}}
    assert digests_in(payload.encode(value)) == [one.digest for one in references]
    assert [BlobReference.of(one.to_dict()) for one in references] == references


WRITER = """
import sys
from pathlib import Path
from knhk.persistence.blob_area import BlobArea
area = BlobArea(Path(sys.argv[1]), inline_bytes=1, max_bytes=1 << 40, min_free_bytes=0)
area.open()
sink = area.begin()
while True:
    sink.write(b"x" * 65536)
    print("wrote", flush=True)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "blobs")], stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_what_a_killed_process_left_behind_goes_at_the_next_start(
    writer: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"wrote\n"
    os.kill(writer.pid, signal.SIGSTOP)
    house = House(tmp_path, encrypted=False)  # opens the area beside it
    assert len(house.files()) == 1, "what another process is writing stays"
    writer.kill()
    writer.wait()
    house.open()
    assert house.files() == []


@pytest.mark.parametrize("other_disk", [False, True])
def test_a_neighbours_blob_is_seen_and_becomes_its_own_when_a_run_refers_to_it(
    tmp_path: Path, other_disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = House(tmp_path / "0", encrypted=False), House(tmp_path / "1", encrypted=False)
    here.area._neighbours = lambda: [tmp_path / "not-there" / "blobs", there.path / "blobs"]
    if other_disk:

        def link(_source: Path, _target: Path) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", link)
    content = os.urandom(MiB)
    reference = put(there.area, content)
    file = there.area.find(reference.digest)
    assert file is not None
    os.utime(file, ns=(0, 0))
    here.area.require(named(reference)[0])
    assert read(here.area, reference, 5, 10) == content[5:15]
    there.area.collect(file.name, time.time_ns() - 1_000_000_000)
    assert read(here.area, reference) == content, "it is wanted next door"
    assert here.area.find(reference.digest) is None
    here.area.mark(FIRST, named(reference))
    assert here.area.blobs_of(FIRST) == [file.name]
    there.area.collect(file.name, time.time_ns() + 1)
    with pytest.raises(BlobNotFound):
        there.area.size(reference.digest)
    assert read(here.open(), reference) == content
    there.area._neighbours = lambda: [here.path / "blobs"]
    there.area.mark(SECOND, named(reference))
    here.area.begin_erasure(FIRST)
    here.area.end_erasure(FIRST, destroy=True)
    assert read(there.open(), reference) == content, "its own, whatever becomes of the other"
