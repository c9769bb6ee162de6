"""The key-encryption key: from a file, an environment variable, or Vault, whose transit engine keeps it to itself.

    file:PATH                       a file of mode 0600 with one key a line, the present one first
    env:NAME                        a variable with keys separated by commas, the present one first
    vault:https://HOST/v1/transit/keys/NAME      HashiCorp Vault or OpenBao; the token is in VAULT_TOKEN

A key is 32 bytes in hexadecimal or base64. Older keys stand behind the present one until nothing is wrapped with them.
A wrapped key is `nonce 12 | AES-256-GCM ciphertext | tag 16`, in Vault whatever Vault gives.
"""

import base64
import binascii
import os
import stat
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from knhk.domain.errors import EncryptionKeyUnavailable, InvalidConfiguration, KeyRingCorrupt
from knhk.ports.keys import KeyWrapper
from knhk.security.files import write_private

if TYPE_CHECKING:
    import httpx

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_ID: Final = b"knhk-key-encryption-key\x00"
_TIMEOUT_S: Final = 10.0


class LocalKeys:
    """Key-encryption keys that this process knows; the first is the present one."""

    def __init__(self, keys: list[bytes], where: str) -> None:
        self._keys = {_id_of(key): key for key in keys}
        self._present, self._where = _id_of(keys[0]), where

    @property
    def key_id(self) -> str:
        return self._present

    def wrap(self, raw: bytes) -> tuple[str, bytes]:
        nonce = os.urandom(_NONCE_BYTES)
        return self._present, nonce + AESGCM(self._keys[self._present]).encrypt(nonce, raw, self._present.encode())

    def unwrap(self, key_id: str, wrapped: bytes) -> bytes:
        key = self._keys.get(key_id)
        if key is None:
            offered = ", ".join(self._keys)
            raise EncryptionKeyUnavailable(
                f"the key ring is encrypted with key {key_id}, and {self._where} has {offered}"
            )
        try:
            return AESGCM(key).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], key_id.encode())
        except (InvalidTag, ValueError) as error:
            raise KeyRingCorrupt("the wrapped key in the key ring was changed: it does not decrypt") from error


class VaultTransit:
    """A key of Vault's transit secrets engine: it wraps and unwraps, and never leaves Vault.

    Vault keeps the versions of a key, so that a key that was rotated there unwraps what an older version wrapped.
    """

    def __init__(self, url: str, token: str, transport: "httpx.BaseTransport | None" = None) -> None:
        base, slash, name = url.rpartition("/keys/")
        if not slash or not name or not base.startswith(("https://", "http://")):
            raise InvalidConfiguration(f"persistence.encryption_key: {url!r} is not https://HOST/v1/transit/keys/NAME")
        self._base, self._name, self._token, self._transport = base, name, token, transport

    @property
    def key_id(self) -> str:
        return f"vault:{self._base}/keys/{self._name}"

    def wrap(self, raw: bytes) -> tuple[str, bytes]:
        answer = self._ask("encrypt", {"plaintext": base64.b64encode(raw).decode()})
        return self.key_id, str(answer["ciphertext"]).encode()

    def unwrap(self, key_id: str, wrapped: bytes) -> bytes:
        if key_id != self.key_id:
            raise EncryptionKeyUnavailable(
                f"the key ring is encrypted with key {key_id}, and the one given is {self.key_id}"
            )
        answer = self._ask("decrypt", {"ciphertext": wrapped.decode(errors="replace")})
        try:
            return base64.b64decode(answer["plaintext"], validate=True)
        except (binascii.Error, TypeError) as error:
            raise EncryptionKeyUnavailable(f"{self.key_id} answered with something that is not a key") from error

    def _ask(self, verb: str, given: Mapping[str, str]) -> Mapping[str, str]:
        import httpx

        url = f"{self._base}/{verb}/{self._name}"
        try:
            with httpx.Client(timeout=_TIMEOUT_S, transport=self._transport) as client:
                response = client.post(url, json=given, headers={"X-Vault-Token": self._token})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EncryptionKeyUnavailable(f"{url}: {error or type(error).__name__}") from error
        if response.status_code == 400 and verb == "decrypt":
            raise KeyRingCorrupt(f"{url}: the wrapped key in the key ring was refused: {response.text[:200]}")
        if response.status_code != 200:
            raise EncryptionKeyUnavailable(f"{url} answered {response.status_code}: {response.text[:200]}")
        try:
            return msgspec.json.decode(response.content, type=_VaultAnswer).data
        except msgspec.DecodeError as error:
            raise EncryptionKeyUnavailable(f"{url} answered with something that is not Vault's") from error


class _VaultAnswer(msgspec.Struct):
    data: dict[str, str]


def wrapper_of(source: str, environ: Mapping[str, str], *, may_create: bool) -> KeyWrapper:
    """The key-encryption key that a setting names; a file is made, if `may_create`, where there is none.

    Raises InvalidConfiguration if the setting or the key cannot be read, EncryptionKeyUnavailable if there is none.
    """
    kind, _, rest = source.partition(":")
    match kind:
        case "file":
            return LocalKeys(read_key_file(Path(rest).expanduser(), may_create=may_create), rest)
        case "env":
            text = environ.get(rest, "")
            if not text:
                raise EncryptionKeyUnavailable(f"the environment variable {rest} is not set")
            return LocalKeys([_key(one, rest) for one in text.split(",")], rest)
        case "vault":
            token = environ.get("VAULT_TOKEN", "")
            if not token:
                raise EncryptionKeyUnavailable("the environment variable VAULT_TOKEN is not set")
            return VaultTransit(rest, token)
    raise InvalidConfiguration(f"persistence.encryption_key: {source!r} is none of file:PATH, env:NAME and vault:URL")


def read_key_file(path: Path, *, may_create: bool) -> list[bytes]:
    """The keys in a file, the present one first. Raises as wrapper_of does."""
    if not path.exists():
        if not may_create:
            raise EncryptionKeyUnavailable(f"there is no key file {path}")
        write_key_file(path, [os.urandom(KEY_BYTES)])
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise EncryptionKeyUnavailable(f"{path} cannot be read: {error}") from error
    if mode & _OTHERS:
        raise InvalidConfiguration(
            f"{path} can be read by others (mode {stat.S_IMODE(mode):04o})",
            hint=f"Keep the key to its owner: chmod 600 {path}",
        )
    if not lines:
        raise InvalidConfiguration(f"{path} has no key in it")
    return [_key(line, str(path)) for line in lines]


def write_key_file(path: Path, keys: list[bytes]) -> None:
    """Replace a key file as a whole, durably."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(path, "".join(f"{key.hex()}\n" for key in keys).encode())


def _key(text: str, where: str) -> bytes:
    text = text.strip()
    try:
        key = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidConfiguration(f"{where}: a key is {KEY_BYTES} bytes in hexadecimal or base64")
    return key


def _id_of(key: bytes) -> str:
    return f"local:{sha256(_ID + key).hexdigest()[:16]}"
