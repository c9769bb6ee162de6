"""Key rings for tests: in a directory of their own, with a key-encryption key that is always the same."""

from pathlib import Path

from knhk.persistence.cipher import Cipher
from knhk.security.key_ring import FILE_NAME, KeyRing
from knhk.security.key_wrapping import LocalKeys

WRAPPER = LocalKeys([bytes(range(32))], "the test")


def key_ring(directory: Path) -> KeyRing:
    """The ring in a directory, made if there is none."""
    if (directory / FILE_NAME).exists():
        return KeyRing.load(directory, WRAPPER)
    return KeyRing.create(directory, WRAPPER, 1)


def cipher(directory: Path) -> Cipher:
    """Encrypts with the ring in a directory."""
    return Cipher(key_ring(directory), encrypting=True)
