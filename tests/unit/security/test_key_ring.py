"""The key ring: what it destroys is gone, what it keeps survives, and no wrong or damaged key passes for a good one."""

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from knhk.domain.errors import (
    DataErased,
    EncryptionKeyUnavailable,
    IllegalTransition,
    InvalidConfiguration,
    KeyRingCorrupt,
    KnhkError,
    StorageUnavailable,
)
from knhk.domain.identifier import compose
from knhk.ports.keys import RunPath
from knhk.security.key_ring import FILE_NAME, KeyRing, Wrapping
from knhk.security.key_wrapping import LocalKeys, VaultTransit, read_key_file, wrapper_of, write_key_file
from tests.unit.security.vault import TOKEN, FakeVault

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
RUNS = [compose(1_767_225_600_000 + number, number % 3, number) for number in range(8)]


def wrapper(*keys: bytes) -> LocalKeys:
    return LocalKeys(list(keys), "the test")


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing.create(tmp_path, wrapper(KEY), 1)


def path(ring: KeyRing, run: int, department: str = "sales", generation: int = 1) -> RunPath:
    return RunPath(generation, ring.scope_of(department), run)


def test_a_ring_gives_the_same_keys_after_a_restart(ring: KeyRing, tmp_path: Path) -> None:
    again = KeyRing.load(tmp_path, wrapper(KEY))
    assert (again.ring_id, again.active, again.scope_of("sales")) == (ring.ring_id, 1, ring.scope_of("sales"))
    assert again.shared_key(1) == ring.shared_key(1)
    keys = {ring.run_key(path(ring, run)) for run in RUNS} | {ring.run_key(path(ring, RUNS[0], "law"))}
    assert len(keys) == len(RUNS) + 1
    assert {again.run_key(path(again, run)) for run in RUNS} < keys
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_an_erased_run_has_no_key_any_more_and_the_others_have(ring: KeyRing, tmp_path: Path) -> None:
    doomed, kept = path(ring, RUNS[0]), path(ring, RUNS[1])
    key = ring.run_key(kept)
    ring.intend_erasure([doomed])
    assert KeyRing.load(tmp_path, wrapper(KEY)).pending_erasures == (doomed,)
    assert ring.run_key(doomed)
    ring.settle_erasure([doomed], destroy=True)
    for one in (ring, KeyRing.load(tmp_path, wrapper(KEY))):
        assert one.run_key(kept) == key
        assert not one.pending_erasures
        with pytest.raises(DataErased, match=f"wf-{RUNS[0]}"):
            one.run_key(doomed)


def test_an_intention_that_was_not_committed_is_dropped(ring: KeyRing) -> None:
    key = ring.run_key(path(ring, RUNS[0]))
    ring.intend_erasure([path(ring, RUNS[0])])
    ring.settle_erasure([path(ring, RUNS[0])], destroy=False)
    assert (ring.run_key(path(ring, RUNS[0])), ring.pending_erasures) == (key, ())


def test_a_department_is_erased_as_a_whole_and_can_go_on(ring: KeyRing, tmp_path: Path) -> None:
    begun = ring.begin_department_erasure("sales", "ada", "asked for", 2)
    assert (ring.active, begun.through) == (2, 1)
    assert ring.begin_department_erasure("sales", "ada", "asked for", 3) == begun
    ring.intend_erasure([path(ring, RUNS[0]), path(ring, RUNS[1], "law")])
    assert [(one.generation, one.workflow_id) for one in ring.pending_erasures] == [
        (1, RUNS[1]),
        (2, RUNS[0]),
        (2, RUNS[1]),
    ], "what goes with the department needs no note of its own, and older generations may have copies"
    assert ring.is_doomed(ring.scope_of("sales"))
    again = KeyRing.load(tmp_path, wrapper(KEY))
    again.end_department_erasure(begun, destroy=True)
    assert not again.department_erasures
    for run in RUNS:
        with pytest.raises(DataErased):
            again.run_key(path(again, run))
        assert again.run_key(path(again, run, generation=2))
        assert again.run_key(path(again, run, "law")) == ring.run_key(path(ring, run, "law"))


def test_generations_are_added_and_dropped(ring: KeyRing, tmp_path: Path) -> None:
    assert ring.add_generation(2) == ring.active == 2
    with pytest.raises(IllegalTransition, match="in use"):
        ring.drop_generation(2)
    with pytest.raises(IllegalTransition, match="no generation 9"):
        ring.drop_generation(9)
    ring.drop_generation(1)
    again = KeyRing.load(tmp_path, wrapper(KEY))
    assert [number for number, _, _ in again.generations] == [2]
    for ask in (lambda: again.shared_key(1), lambda: again.run_key(path(again, RUNS[0]))):
        with pytest.raises(EncryptionKeyUnavailable, match="generation 1"):
            ask()


def test_a_wrong_key_is_refused_and_named(ring: KeyRing, tmp_path: Path) -> None:
    with pytest.raises(EncryptionKeyUnavailable, match=r"encrypted with key local:\w{16}, and the test has local:"):
        KeyRing.load(tmp_path, wrapper(OTHER))
    assert KeyRing.load(tmp_path, wrapper(OTHER, KEY)).ring_id == ring.ring_id
    with pytest.raises(EncryptionKeyUnavailable, match="no key ring"):
        KeyRing.load(tmp_path / "elsewhere", wrapper(KEY))


def test_every_flipped_byte_and_every_cut_is_found(ring: KeyRing, tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    whole = file.read_bytes()
    damaged = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    damaged += [whole[:length] for length in range(0, len(whole), 7)] + [whole + b"\x00"]
    for raw in damaged:
        file.write_bytes(raw)
        with pytest.raises((KeyRingCorrupt, EncryptionKeyUnavailable)):
            KeyRing.load(tmp_path, wrapper(KEY))


def test_another_key_encryption_key_takes_over_in_three_steps_each_of_which_may_be_the_last(
    ring: KeyRing, tmp_path: Path
) -> None:
    both = wrapper(OTHER, KEY)
    assert KeyRing.load(tmp_path, both).key_id == ring.key_id
    ring.rewrap(Wrapping.by(both))
    for keys in (both, wrapper(OTHER)):
        assert KeyRing.load(tmp_path, keys).shared_key(1) == ring.shared_key(1)
    with pytest.raises(EncryptionKeyUnavailable):
        KeyRing.load(tmp_path, wrapper(KEY))


def test_a_change_that_cannot_be_written_changes_nothing(ring: KeyRing, tmp_path: Path) -> None:
    before = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / f".{FILE_NAME}.{os.getpid()}").mkdir()  # in the way of the new file
    with pytest.raises((StorageUnavailable, KnhkError, OSError)):
        ring.add_generation(2)
    assert ring.active == 1
    assert (tmp_path / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize("call", ["fsync", "rename", "pwrite"])
def test_a_process_killed_while_it_writes_leaves_a_whole_ring(tmp_path: Path, call: str) -> None:
    program = f"""
import os, signal
from pathlib import Path
from knhk.security.key_ring import KeyRing
from knhk.security.key_wrapping import LocalKeys
ring = KeyRing.create(Path({str(tmp_path)!r}), LocalKeys([{KEY!r}], "x"), 1)
def dies(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if {call!r} == "rename":
    Path.rename = dies
else:
    setattr(os, {call!r}, dies)
ring.add_generation(2)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], timeout=60, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    ring = KeyRing.load(tmp_path, wrapper(KEY))
    assert ring.active in (1, 2)
    ring.add_generation(3)
    assert KeyRing.load(tmp_path, wrapper(KEY)).active == ring.active


# -- Where the key-encryption key comes from


def test_a_key_file_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    source = f"file:{tmp_path / 'new' / 'kek'}"
    with pytest.raises(EncryptionKeyUnavailable, match="no key file"):
        wrapper_of(source, {}, may_create=False)
    key_id, wrapped = wrapper_of(source, {}, may_create=True).wrap(KEY)
    assert wrapper_of(source, {}, may_create=True).unwrap(key_id, wrapped) == KEY
    (tmp_path / "new" / "kek").chmod(0o644)
    with pytest.raises(InvalidConfiguration, match="read by others"):
        wrapper_of(source, {}, may_create=False)


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "00" * 31, "\xff" * 64])
def test_a_file_without_a_good_key_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "kek"
    write_key_file(file, [KEY])
    file.write_text(text, encoding="latin-1")
    with pytest.raises((InvalidConfiguration, EncryptionKeyUnavailable)) as caught:
        read_key_file(file, may_create=False)
    assert text[:8] not in str(caught.value) or not text


def test_keys_come_from_a_variable_in_both_spellings() -> None:
    environ = {"KEK": f"{OTHER.hex()},{base64.b64encode(KEY).decode()}"}
    assert wrapper_of("env:KEK", environ, may_create=False).unwrap(*wrapper(KEY).wrap(b"x")) == b"x"
    with pytest.raises(EncryptionKeyUnavailable, match="KEK is not set"):
        wrapper_of("env:KEK", {}, may_create=True)


@pytest.fixture
def vault() -> Iterator[FakeVault]:
    running = FakeVault()
    yield running
    running.close()


def test_vault_wraps_and_unwraps_and_the_key_never_leaves_it(vault: FakeVault, tmp_path: Path) -> None:
    environ = {"VAULT_TOKEN": TOKEN}
    ring = KeyRing.create(tmp_path, wrapper_of(f"vault:{vault.url}", environ, may_create=True), 1)
    again = wrapper_of(f"vault:{vault.url}", environ, may_create=False)
    assert KeyRing.load(tmp_path, again).shared_key(1) == ring.shared_key(1)
    vault.rotate()
    assert KeyRing.load(tmp_path, again).shared_key(1) == ring.shared_key(1)
    ring.rewrap(Wrapping.by(again))
    vault.versions[0] = os.urandom(32)  # the old version is destroyed
    assert KeyRing.load(tmp_path, again).shared_key(1) == ring.shared_key(1)
    assert vault.requests[0] == "/v1/transit/encrypt/knhk"


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_a_vault_that_does_not_answer_well_is_named(vault: FakeVault, tmp_path: Path, status: int) -> None:
    KeyRing.create(tmp_path, VaultTransit(vault.url, TOKEN), 1)
    vault.failing = status
    with pytest.raises(EncryptionKeyUnavailable, match=f"answered {status}"):
        KeyRing.load(tmp_path, VaultTransit(vault.url, TOKEN))


def test_a_vault_that_is_gone_or_refuses_is_told_from_a_damaged_ring(vault: FakeVault, tmp_path: Path) -> None:
    KeyRing.create(tmp_path, VaultTransit(vault.url, TOKEN), 1)
    with pytest.raises(EncryptionKeyUnavailable, match="403"):
        KeyRing.load(tmp_path, VaultTransit(vault.url, "hvs.wrong"))
    with pytest.raises(EncryptionKeyUnavailable, match="VAULT_TOKEN"):
        wrapper_of(f"vault:{vault.url}", {}, may_create=False)
    with pytest.raises(InvalidConfiguration, match="transit/keys"):
        wrapper_of("vault:https://vault", {"VAULT_TOKEN": "x"}, may_create=False)
    vault.versions[0] = os.urandom(32)
    with pytest.raises(KeyRingCorrupt, match="refused"):
        KeyRing.load(tmp_path, VaultTransit(vault.url, TOKEN))
    vault.close()
    with pytest.raises(EncryptionKeyUnavailable, match=r"127\.0\.0\.1"):
        KeyRing.load(tmp_path, VaultTransit(vault.url, TOKEN))
