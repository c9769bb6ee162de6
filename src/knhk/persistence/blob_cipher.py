"""Blobs encrypted at rest, chunk by chunk, so that any part of one can be read without the rest.

    file     = header | chunk 0 | chunk 1 | ...
    header   = 'KNHKBLOB' 0x01 | generation 4 | scope 8 | number 8 | salt 16
    chunk i  = AES-256-GCM(file key, nonce, 262144 bytes or fewer in the last, header) with its tag of 16 bytes
    file key = SHA-256(0x06 || leaf key || salt)
    nonce    = 7 zero bytes | i as 4 bytes | 1 for the last chunk, else 0

That is the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizar: Online Authenticated-Encryption and its
Nonce-Reuse Misuse-Resistance, 2015): chunks cannot be changed, swapped, dropped or cut off. The leaf key is that of
`number` below `scope` in the key ring's tree, a leaf of the blob's own, and can be destroyed like that of a run. Files
are named by the ring, so that nobody without it can tell whether a known file is among them.
"""

import os
from hashlib import sha256
from struct import Struct
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from knhk.domain.errors import EncryptionKeyUnavailable, ReceiptCorrupt
from knhk.ports.keys import DataKeys, RunPath

CHUNK_BYTES: Final = 262_144
_TAG_BYTES: Final = 16
SEALED_CHUNK_BYTES: Final = CHUNK_BYTES + _TAG_BYTES
_MAGIC: Final = b"KNHKBLOB\x01"
_HEADER: Final = Struct(">9sI8sQ16s")
HEADER_BYTES: Final = _HEADER.size
_SALT_BYTES: Final = 16
_FILE_KEY: Final = b"\x06"
_NONCE: Final = Struct(">7xIB")
_SCOPE_NAME: Final = "\x00blobs"


class BlobKey(NamedTuple):
    """Encrypts and opens the chunks of one file. `path` is the leaf whose key it is made of."""

    header: bytes
    path: RunPath
    cipher: AESGCM

    def seal(self, index: int, chunk: bytes, *, last: bool) -> bytes:
        """A chunk as it is stored."""
        return self.cipher.encrypt(_NONCE.pack(index, last), chunk, self.header)

    def open(self, index: int, stored: bytes, *, last: bool) -> bytes:
        """A stored chunk in clear. Raises ReceiptCorrupt if it is not what was written."""
        try:
            return self.cipher.decrypt(_NONCE.pack(index, last), stored, self.header)
        except InvalidTag as error:
            raise ReceiptCorrupt(f"chunk {index} of a blob does not decrypt: it was changed or cut off") from error


class BlobCipher:
    """Encrypts blobs with the keys of a ring."""

    def __init__(self, keys: DataKeys) -> None:
        self.keys = keys
        self.scope = keys.scope_of(_SCOPE_NAME)

    def name_of(self, digest: str) -> str:
        """The name of the file of the blob with this digest."""
        return b"".join(self.keys.scope_of(f"{_SCOPE_NAME}\x00{half}{digest}") for half in "12").hex()

    def new(self, number: int) -> BlobKey:
        """The key of a new file; `number` is unique in its generation."""
        path = RunPath(self.keys.active, self.scope, number)
        header = _HEADER.pack(_MAGIC, path.generation, path.scope, number, os.urandom(_SALT_BYTES))
        return self._key(header, path)

    def of(self, header: bytes) -> BlobKey:
        """The key of a file that begins so.

        Raises:
            ReceiptCorrupt: no version writes this.
            DataErased: the key was destroyed.
            EncryptionKeyUnavailable: the ring does not have it.
        """
        path = path_of(header)
        if path is None:
            raise ReceiptCorrupt("the file of an encrypted blob does not begin as one")
        if not self.keys.knows(path.generation):
            raise EncryptionKeyUnavailable(
                f"a blob is encrypted with generation {path.generation} of the data keys, which is not in the key ring"
            )
        return self._key(header, path)

    def _key(self, header: bytes, path: RunPath) -> BlobKey:
        leaf = self.keys.run_key(path)
        return BlobKey(header, path, AESGCM(sha256(_FILE_KEY + leaf + header[-_SALT_BYTES:]).digest()))


def path_of(header: bytes) -> RunPath | None:
    """Which leaf encrypts the file that begins so; None if it is not encrypted."""
    if len(header) != HEADER_BYTES or not header.startswith(_MAGIC):
        return None
    _, generation, scope, number, _ = _HEADER.unpack(header)
    return RunPath(generation, scope, number)


def size_of(stored: int) -> int:
    """The size of the blob in a file of `stored` bytes."""
    chunks = -(-(stored - HEADER_BYTES) // SEALED_CHUNK_BYTES)
    return stored - HEADER_BYTES - chunks * _TAG_BYTES
