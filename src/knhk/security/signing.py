"""The node's signing key: made at the first start, mode 0600, in a directory of its own, apart from the journal.

The file `signing.pem` holds an Ed25519 private key (PKCS #8, PEM). A key's id is the first 16 hexadecimal digits of the
SHA-256 of its 32 raw public bytes. The public half is registered in the journal before the key signs its first block.

PEM has no checksum: a flipped bit in the key gives another key, which would sign without a word. So a line before it
names the key, and a file with that line must be, byte for byte, what would be written for that key. A file that begins
with the PEM itself is an operator's own.
"""

import stat
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from knhk.domain.errors import InvalidConfiguration
from knhk.ports.environment import PublicKey
from knhk.security.files import alone_in, write_private

KEY_FILE: Final = "signing.pem"
_NAMED: Final = "KNHK signing key {}\n"
_PEM: Final = b"-----BEGIN "
UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm, InternalError)
"""What reading a damaged key in PEM raises."""
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_DAMAGED: Final = (
    "Put back a copy of it; or take it away, and the next start makes a new key. What was signed stays valid."
)


class Ed25519Signer:
    """Implements ports.environment.Signer."""

    def __init__(self, private: Ed25519PrivateKey, created_at_ns: int) -> None:
        self._private = private
        raw = private.public_key().public_bytes_raw()
        self._public = PublicKey(key_id(raw), raw, created_at_ns)

    @property
    def public_key(self) -> PublicKey:
        return self._public

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)

    def take_over(self, successor: "Ed25519Signer") -> None:
        """Sign with another key from now on, for everybody who has this signer."""
        self._private, self._public = successor._private, successor._public

    @classmethod
    def write_new(cls, path: Path, now_ns: int) -> Self:
        """A new key, written to a file. Raises OSError."""
        private = Ed25519PrivateKey.generate()
        _write_new(path, private)
        return cls(private, now_ns)

    @classmethod
    def load_or_create(cls, directory: Path, now_ns: int) -> Self:
        """The key of this directory, made if there is none.

        Raises:
            InvalidConfiguration: the file is no Ed25519 key, or not what was written, or others may read it.
        """
        path = directory / KEY_FILE
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with alone_in(directory):  # the processes of one server start at the same time
                if not path.exists():
                    _write_new(path, Ed25519PrivateKey.generate())
        status = path.stat()
        if status.st_mode & _OTHERS:
            raise InvalidConfiguration(
                f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o})",
                hint=f"Keep the key to its owner: chmod 600 {path}",
            )
        raw = path.read_bytes()
        try:
            private = serialization.load_pem_private_key(raw, None)
        except UNREADABLE as error:
            raise InvalidConfiguration(f"{path} is not a private key: {error}", hint=_DAMAGED) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise InvalidConfiguration(f"{path} is not an Ed25519 key", hint=_DAMAGED)
        if not raw.startswith(_PEM) and raw != _written(private):
            raise InvalidConfiguration(f"{path} is damaged: it is not the key that its first line names", hint=_DAMAGED)
        return cls(private, min(now_ns, status.st_mtime_ns))


def key_id(raw: bytes) -> str:
    """The id of a public key."""
    return sha256(raw).hexdigest()[:16]


def verify(key: PublicKey, message: bytes, signature: bytes) -> bool:
    """Whether this key made the signature over the message."""
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_pem(key: PublicKey) -> bytes:
    """The key as PEM (SubjectPublicKeyInfo), as openssl and others read it."""
    return Ed25519PublicKey.from_public_bytes(key.raw).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _write_new(path: Path, private: Ed25519PrivateKey) -> None:
    """Write the key so that a crash leaves either none or a whole one, and nobody else can ever read it."""
    write_private(path, _written(private))


def _written(private: Ed25519PrivateKey) -> bytes:
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return _NAMED.format(key_id(private.public_key().public_bytes_raw())).encode() + pem
