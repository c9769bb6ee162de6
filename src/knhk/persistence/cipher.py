"""Rows encrypted at rest: AES-256-GCM, each bound to its place, so that none can be changed, swapped or moved.

    0xc1 0xf0 || row                                        a row that is in clear and begins with 0xc1
    0xc1 0x01 || generation 4 | salt 16 | number 4 | box    under the generation's shared key
    0xc1 0x02 || generation 4 | scope 8 | salt 16 | number 4 | box      under the key of the row's run

    row key   = SHA-256(0x05 || key || salt)        a salt of its own for each batch of rows
    nonce     = number | 8 zero bytes               the number counts the rows of the batch, so no nonce comes twice
    box       = AES-256-GCM(row key, nonce, row, associated data) with its tag of 16 bytes
    associated data = family | 0x00 | the row's key | the header, all of the above before the box

0xc1 is the one byte that MessagePack never uses, and no row of format 1 begins with it. The shared key encrypts
receipts, descriptors and rows of projections. Payloads are encrypted with the key of their run, which can be destroyed.

Other rooms that keep data outside of the store use `seal` and `open` with a family and key of their own.
"""

import os
from hashlib import sha256
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from knhk.domain.errors import EncryptionKeyUnavailable, ReceiptCorrupt
from knhk.ports.keys import DataKeys, RunPath

MARK: Final = b"\xc1"
IN_CLEAR: Final = b"\xc1\xf0"
SHARED: Final = b"\xc1\x01"
OF_RUN: Final = b"\xc1\x02"
SALT_BYTES: Final = 16
_ROW_KEY: Final = b"\x05"
_SHARED_HEADER: Final = Struct(">2sI16s4s")
_RUN_HEADER: Final = Struct(">2sI8s16s4s")
_NUMBER: Final = Struct(">I")
_REST_OF_NONCE: Final = bytes(8)


def is_sealed(row: bytes) -> bool:
    """Whether a row is encrypted."""
    return row[:2] in (SHARED, OF_RUN)


def in_clear(row: bytes) -> bytes:
    """A row as it is stored without encryption."""
    return IN_CLEAR + row if row[:1] == MARK else row


def generation_of(row: bytes) -> int:
    """The generation of keys that an encrypted row needs."""
    return int.from_bytes(row[2:6])


def run_path(row: bytes, workflow_id: int) -> RunPath | None:
    """Which key of a run encrypts a row; None if none does."""
    if row[:2] != OF_RUN or len(row) < _RUN_HEADER.size:
        return None
    _, generation, scope, _, _ = _RUN_HEADER.unpack_from(row)
    return RunPath(generation, scope, workflow_id)


class Sealer:
    """Encrypts the rows of one batch, which share a salt."""

    def __init__(self, keys: DataKeys) -> None:
        self._keys, self._generation = keys, keys.active
        self._salt = os.urandom(SALT_BYTES)
        self._count = 0
        self._shared: AESGCM | None = None

    def seal(self, family: str, key: bytes, row: bytes, prefix: bytes = b"") -> bytes:
        """A row under the shared key. `prefix`, which is bound to it too, is left to the caller to store."""
        if self._shared is None:
            self._shared = AESGCM(_row_key(self._keys.shared_key(self._generation), self._salt))
        number = self._next()
        header = _SHARED_HEADER.pack(SHARED, self._generation, self._salt, number)
        return header + self._shared.encrypt(number + _REST_OF_NONCE, row, _bound(family, key, prefix + header))

    def seal_for_run(self, family: str, key: bytes, row: bytes, department: str, workflow_id: int) -> bytes:
        """A row under the key of a run."""
        scope = self._keys.scope_of(department)
        return self.seal_at(family, key, row, scope, workflow_id)

    def seal_at(self, family: str, key: bytes, row: bytes, scope: bytes, workflow_id: int) -> bytes:
        """The same for a department that is known by its scope. Raises DataErased if the run's key is destroyed."""
        run_key = self._keys.run_key(RunPath(self._generation, scope, workflow_id))
        number = self._next()
        header = _RUN_HEADER.pack(OF_RUN, self._generation, scope, self._salt, number)
        cipher = AESGCM(_row_key(run_key, self._salt))
        return header + cipher.encrypt(number + _REST_OF_NONCE, row, _bound(family, key, header))

    def _next(self) -> bytes:
        self._count += 1
        return _NUMBER.pack(self._count)


class Cipher:
    """Opens rows. Without keys it opens those in clear alone. `sealer` is for new rows, if they are to be encrypted."""

    def __init__(self, keys: DataKeys | None = None, *, encrypting: bool = False) -> None:
        self.keys, self.encrypting = keys, encrypting and keys is not None

    def sealer(self) -> Sealer | None:
        """For the rows of one batch; None while new rows are written in clear."""
        return Sealer(self.keys) if self.encrypting and self.keys is not None else None

    def open(self, family: str, key: bytes, row: bytes, *, workflow_id: int = 0, prefix: bytes = b"") -> bytes:
        """The row in clear.

        Raises:
            ReceiptCorrupt: it is not what was encrypted for this place.
            DataErased: the key of its run was destroyed.
            EncryptionKeyUnavailable: the key is not at hand.
        """
        if row[:1] != MARK:
            return row
        kind = row[:2]
        if kind == IN_CLEAR:
            return row[2:]
        if self.keys is None:
            raise EncryptionKeyUnavailable(f"{_named(family, key)} is encrypted, and its key was not given")
        if kind == SHARED and len(row) > _SHARED_HEADER.size:
            _, generation, salt, number = _SHARED_HEADER.unpack_from(row)
            secret, size = self._shared_key(generation, family, key), _SHARED_HEADER.size
        elif kind == OF_RUN and len(row) > _RUN_HEADER.size:
            _, generation, scope, salt, number = _RUN_HEADER.unpack_from(row)
            self._require(generation, family, key)
            secret, size = self.keys.run_key(RunPath(generation, scope, workflow_id)), _RUN_HEADER.size
        else:
            raise ReceiptCorrupt(f"{_named(family, key)} begins with {row[:2].hex()}, which no version writes")
        try:
            cipher = AESGCM(_row_key(secret, salt))
            return cipher.decrypt(number + _REST_OF_NONCE, row[size:], _bound(family, key, prefix + row[:size]))
        except InvalidTag as error:
            raise ReceiptCorrupt(f"{_named(family, key)} does not decrypt: it was changed or moved") from error

    def _shared_key(self, generation: int, family: str, key: bytes) -> bytes:
        self._require(generation, family, key)
        assert self.keys is not None
        return self.keys.shared_key(generation)

    def _require(self, generation: int, family: str, key: bytes) -> None:
        assert self.keys is not None
        if not 0 < generation <= self.keys.active:
            raise ReceiptCorrupt(f"{_named(family, key)} names generation {generation} of the data keys: there is none")
        if not self.keys.knows(generation):
            raise EncryptionKeyUnavailable(
                f"{_named(family, key)} is encrypted with generation {generation} of the data keys, which was destroyed"
            )


def _row_key(key: bytes, salt: bytes) -> bytes:
    return sha256(_ROW_KEY + key + salt).digest()


def _bound(family: str, key: bytes, header: bytes) -> bytes:
    return family.encode() + b"\x00" + key + header


def _named(family: str, key: bytes) -> str:
    """A row for people: whose it is, as far as its key tells."""
    if family in ("receipts", "payloads") and len(key) == 14:
        return f"the row of wf-{int.from_bytes(key[2:10])} from receipt {int.from_bytes(key[10:])} on in {family}"
    return f"the row {key.hex()} in {family}"
