"""The key ring: generations of data keys, in one file that is encrypted with a key of its own, which is wrapped.

    file     'KNHKRING' | format 1 | msgpack [ring id, key id, wrapped ring key, nonce, box]
    box      AES-256-GCM of the msgpack contents under the ring key; associated data: ring id and key id

It lies in `persistence.key_path`, apart from the data: backups of the data have no keys in them, so that a key which is
destroyed here is gone for every backup too. Only the process that holds the data directory writes it. Every change is
durable when the method returns; a change that fails leaves the ring, in memory and on disk, as it was.
"""

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from knhk.domain.errors import (
    DataErased,
    DiskFull,
    EncryptionKeyUnavailable,
    IllegalTransition,
    KeyRingCorrupt,
    StorageUnavailable,
)
from knhk.domain.identifier import PARTITION_BITS, SEQUENCE_BITS, partition_of, to_text
from knhk.ports.keys import KeyWrapper, RunPath
from knhk.security.files import write_private
from knhk.security.key_tree import KeyTree
from knhk.security.key_wrapping import KEY_BYTES

FILE_NAME: Final = "data.keys"
_MAGIC: Final = b"KNHKRING\x01"
_NONCE_BYTES: Final = 12
_SCOPE_BYTES: Final = 8
_NO_SPACE: Final = 28


class Generation(msgspec.Struct):
    """Keys that were made together. `tree` are the nodes of key_tree.py, `created_at_ns` is Unix time."""

    number: int
    created_at_ns: int
    shared: bytes
    tree: dict[str, bytes]


class DepartmentErasure(msgspec.Struct, frozen=True):
    """The erasure of a department that began at `at_ns` (Unix time): its runs in generations up to `through`."""

    department: str
    through: int
    actor: str
    reason: str
    at_ns: int


class Contents(msgspec.Struct):
    """What the file keeps secret."""

    names_key: bytes
    generations: list[Generation]
    pending: list[RunPath] = []
    departments: list[DepartmentErasure] = []


class Wrapping(msgspec.Struct, frozen=True):
    """A new key of the ring, and what a key-encryption key made of it."""

    ring_key: bytes
    key_id: str
    wrapped: bytes

    @classmethod
    def by(cls, wrapper: KeyWrapper) -> "Wrapping":
        """A fresh one. Touches no ring, so that it can wait for a KMS in a thread."""
        ring_key = os.urandom(KEY_BYTES)
        return cls(ring_key, *wrapper.wrap(ring_key))


class _Envelope(msgspec.Struct, array_like=True):
    ring_id: bytes
    key_id: str
    wrapped: bytes
    nonce: bytes
    box: bytes


_CONTENTS: Final = msgspec.msgpack.Decoder(Contents)
_ENVELOPE: Final = msgspec.msgpack.Decoder(_Envelope)


class KeyRing:
    """Implements ports.keys.DataKeys over one file."""

    def __init__(self, path: Path, envelope: _Envelope, ring_key: bytes, contents: Contents) -> None:
        self._path, self._envelope, self._ring_key = path, envelope, ring_key
        self._take(contents)

    def _take(self, contents: Contents) -> None:
        self._contents = contents
        self._trees = {one.number: KeyTree(one.tree) for one in contents.generations}
        self._shared = {one.number: one.shared for one in contents.generations}
        self._scopes: dict[str, bytes] = {}

    @classmethod
    def create(cls, directory: Path, wrapper: KeyWrapper, now_ns: int) -> "KeyRing":
        """A new ring with its first generation. Raises EncryptionKeyUnavailable, DiskFull or StorageUnavailable."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Wrapping.by(wrapper)
        envelope = _Envelope(os.urandom(16), made.key_id, made.wrapped, b"", b"")
        contents = Contents(os.urandom(KEY_BYTES), [_generation(1, now_ns)])
        ring = cls(directory / FILE_NAME, envelope, made.ring_key, contents)
        ring._save(contents)
        return ring

    @classmethod
    def load(cls, directory: Path, wrapper: KeyWrapper) -> "KeyRing":
        """The ring in a directory.

        Raises EncryptionKeyUnavailable if there is none or the key-encryption key is another, KeyRingCorrupt if the
        file is not what was written.
        """
        path = directory / FILE_NAME
        envelope = read_envelope(path)
        try:
            ring_key = wrapper.unwrap(envelope.key_id, envelope.wrapped)
        except (EncryptionKeyUnavailable, KeyRingCorrupt) as error:
            raise type(error)(f"{path}: {error.message}", hint=error.advice) from error
        try:
            raw = AESGCM(ring_key).decrypt(envelope.nonce, envelope.box, _bound(envelope))
            return cls(path, envelope, ring_key, _CONTENTS.decode(raw))
        except (InvalidTag, ValueError, msgspec.DecodeError) as error:
            raise KeyRingCorrupt(f"{path} was changed: it does not decrypt") from error

    # -- ports.keys.DataKeys

    @property
    def ring_id(self) -> bytes:
        return self._envelope.ring_id

    @property
    def active(self) -> int:
        return self._contents.generations[-1].number

    def knows(self, generation: int) -> bool:
        return generation in self._shared

    def shared_key(self, generation: int) -> bytes:
        try:
            return self._shared[generation]
        except KeyError:
            raise self._lacks(generation) from None

    def scope_of(self, department: str) -> bytes:
        scope = self._scopes.get(department)
        if scope is None:
            if len(self._scopes) >= 10_000:
                self._scopes.clear()
            scope = sha256(self._contents.names_key + department.encode()).digest()[:_SCOPE_BYTES]
            self._scopes[department] = scope
        return scope

    def run_key(self, path: RunPath) -> bytes:
        tree = self._trees.get(path.generation)
        if tree is None:
            raise self._lacks(path.generation)
        key = tree.key(_digits(path))
        if key is None:
            raise DataErased(
                f"the inputs and outputs of {to_text(path.workflow_id)} were erased: their key is destroyed"
            )
        return key

    @property
    def pending_erasures(self) -> Sequence[RunPath]:
        return tuple(self._contents.pending)

    def intend_erasure(self, runs: Sequence[RunPath]) -> None:
        covered = [(self.scope_of(one.department), one.through) for one in self._contents.departments]
        pending = list(self._contents.pending)
        for generation in self._trees:  # of older ones there may be copies
            for run in runs:
                path = msgspec.structs.replace(run, generation=generation)
                whole = any(run.scope == scope and generation <= through for scope, through in covered)
                if not whole and path not in pending:
                    pending.append(path)
        if pending != self._contents.pending:
            self._save(msgspec.structs.replace(self._contents, pending=pending))

    def settle_erasure(self, runs: Sequence[RunPath], *, destroy: bool) -> None:
        meant = {(run.scope, run.workflow_id) for run in runs}
        settled = [run for run in self._contents.pending if (run.scope, run.workflow_id) in meant]
        if settled:
            pending = [run for run in self._contents.pending if run not in settled]
            doomed = [(run.generation, _digits(run)) for run in settled] if destroy else []
            self._save(msgspec.structs.replace(self._without(doomed), pending=pending))

    def is_doomed(self, scope: bytes) -> bool:
        return any(self.scope_of(one.department) == scope for one in self._contents.departments)

    # -- Departments

    @property
    def department_erasures(self) -> Sequence[DepartmentErasure]:
        """Those that have begun and are not complete."""
        return tuple(self._contents.departments)

    def begin_department_erasure(self, department: str, actor: str, reason: str, now_ns: int) -> DepartmentErasure:
        """Give new runs another generation, and note that the department's older ones are to be erased."""
        for known in self._contents.departments:
            if known.department == department:
                return known
        begun = DepartmentErasure(department, self.active, actor, reason, now_ns)
        self._save(
            msgspec.structs.replace(
                self._contents,
                generations=[*self._contents.generations, _generation(self.active + 1, now_ns)],
                departments=[*self._contents.departments, begun],
            )
        )
        return begun

    def end_department_erasure(self, begun: DepartmentErasure, *, destroy: bool) -> None:
        """Destroy the keys of all runs of the department in the older generations; or drop the note."""
        scope = self.scope_of(begun.department).hex()
        doomed = [(number, scope) for number in self._trees if number <= begun.through] if destroy else []
        left = [one for one in self._contents.departments if one != begun]
        self._save(msgspec.structs.replace(self._without(doomed), departments=left))

    # -- Rotation

    def add_generation(self, now_ns: int) -> int:
        """Make a generation with which new data are encrypted from now on; its number."""
        number = self.active + 1
        generations = [*self._contents.generations, _generation(number, now_ns)]
        self._save(msgspec.structs.replace(self._contents, generations=generations))
        return number

    def drop_generation(self, number: int) -> None:
        """Destroy a generation. What is encrypted with it, in backups too, can never be read again."""
        if number == self.active:
            raise IllegalTransition(f"generation {number} is in use", hint="Rotate first: `knhk keys rotate`.")
        if number not in self._shared:
            raise IllegalTransition(f"there is no generation {number}", hint="See `knhk keys list`.")
        left = [one for one in self._contents.generations if one.number != number]
        self._save(msgspec.structs.replace(self._contents, generations=left))

    def rewrap(self, wrapping: "Wrapping") -> None:
        """Write the ring encrypted with a new ring key, which the present key-encryption key has wrapped."""
        envelope = _Envelope(self.ring_id, wrapping.key_id, wrapping.wrapped, b"", b"")
        self._save(self._contents, envelope, wrapping.ring_key)

    @property
    def key_id(self) -> str:
        """The id of the key-encryption key that wraps the ring's key."""
        return self._envelope.key_id

    @property
    def generations(self) -> Sequence[tuple[int, int, int]]:
        """Of each generation: number, when it was made (Unix time in ns), and how many nodes its tree has."""
        return [(one.number, one.created_at_ns, len(one.tree)) for one in self._contents.generations]

    def _without(self, doomed: Sequence[tuple[int, str]]) -> Contents:
        """The contents without some branches of trees, each given as generation and digits."""
        generations = []
        for one in self._contents.generations:
            tree = KeyTree(one.tree)
            for number, digits in doomed:
                if number == one.number:
                    tree.destroy(digits)
            generations.append(msgspec.structs.replace(one, tree=dict(tree.nodes)))
        return msgspec.structs.replace(self._contents, generations=generations)

    def _save(self, contents: Contents, envelope: _Envelope | None = None, ring_key: bytes | None = None) -> None:
        made = msgspec.structs.replace(envelope or self._envelope, nonce=os.urandom(_NONCE_BYTES))
        key = ring_key or self._ring_key
        made.box = AESGCM(key).encrypt(made.nonce, msgspec.msgpack.encode(contents), _bound(made))
        try:
            write_private(self._path, _MAGIC + msgspec.msgpack.encode(made))
        except OSError as error:
            kind = DiskFull if error.errno == _NO_SPACE else StorageUnavailable
            raise kind(f"{self._path} cannot be written: {error.strerror}") from error
        self._envelope, self._ring_key = made, key
        self._take(contents)

    def _lacks(self, generation: int) -> EncryptionKeyUnavailable:
        return EncryptionKeyUnavailable(
            f"generation {generation} of the data keys is not in {self._path}: destroyed, or the ring is an old copy"
        )


def read_envelope(path: Path) -> _Envelope:
    """What can be read of a ring without a key. Raises EncryptionKeyUnavailable or KeyRingCorrupt."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise EncryptionKeyUnavailable(f"there is no key ring {path}") from error
    except OSError as error:
        raise EncryptionKeyUnavailable(f"{path} cannot be read: {error.strerror}") from error
    if not raw.startswith(_MAGIC):
        raise KeyRingCorrupt(f"{path} is not a key ring of a format that this version knows")
    try:
        return _ENVELOPE.decode(raw[len(_MAGIC) :])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeyRingCorrupt(f"{path} was changed: {error}") from error


def _bound(envelope: _Envelope) -> bytes:
    return envelope.ring_id + envelope.key_id.encode()


def _generation(number: int, now_ns: int) -> Generation:
    return Generation(number, now_ns, os.urandom(KEY_BYTES), {"": os.urandom(KEY_BYTES)})


def _digits(path: RunPath) -> str:
    """The way to a run: department, partition, time, sequence; so that runs of the same time share most of it."""
    run = path.workflow_id
    at_ms, sequence = run >> (PARTITION_BITS + SEQUENCE_BITS), run & ((1 << SEQUENCE_BITS) - 1)
    ordered = (partition_of(run) << 54) | (at_ms << SEQUENCE_BITS) | sequence
    return f"{path.scope.hex()}{ordered:016x}"
