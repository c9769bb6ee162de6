"""The manifest of a snapshot: what is in it, up to where it goes, and a signature over that.

    snapshot.json       the manifest, JSON in UTF-8
    snapshot.json.sig   {"key_id", "public_key", "signature"}: Ed25519 over 0x04 || the bytes of snapshot.json, in hex

Both lie in the snapshot's directory among the files that they list. Reads files; writes nothing but these two.
Invariant: what the manifest does not say of a directory is not believed of it.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from knhk.domain.errors import BackupCorrupt
from knhk.domain.receipt import SignedBlock
from knhk.persistence.scanner import Progress
from knhk.persistence.verification import UNDECODABLE, CheckSignature
from knhk.ports.environment import PublicKey, Signer
from knhk.recovery.durable_files import digest_of, write_durably

MANIFEST_FILE: Final = "snapshot.json"
SIGNATURE_FILE: Final = "snapshot.json.sig"
MANIFEST_PREFIX: Final = b"\x04"
FORMAT: Final = 1
_MACHINE_FILES: Final = frozenset({MANIFEST_FILE, SIGNATURE_FILE, "LOCK", "LOG"})


def silent(_stage: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""


class ListedFile(msgspec.Struct, frozen=True):
    """A file of the snapshot: its size in bytes and its SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str


class Head(msgspec.Struct, frozen=True):
    """Where a partition's journal ends: the newest block, when it was committed, and the receipts up to it."""

    partition: int
    height: int
    block_hash: str
    epoch: int
    at_ns: int
    receipts: int

    @classmethod
    def of(cls, signed: SignedBlock) -> "Head":
        """The head that this block is."""
        block = signed.block()
        receipts = block.first_offset + block.count
        return cls(block.partition, block.height, signed.hash().hex(), block.epoch, block.at_ns, receipts)


class Manifest(msgspec.Struct, frozen=True):
    """What a snapshot is. `made_at_ns` is Unix time in nanoseconds, `store_format` the layout's version."""

    format: int
    store_format: int
    version: str
    node_id: str
    made_at_ns: int
    heads: list[Head]
    files: list[ListedFile]

    @property
    def size_bytes(self) -> int:
        return sum(one.size for one in self.files)


class Signature(msgspec.Struct, frozen=True):
    """Who signed a manifest; everything in hexadecimal."""

    key_id: str
    public_key: str
    signature: str

    @classmethod
    def of(cls, key: PublicKey, signature: bytes) -> "Signature":
        """What is written of a signature. The id follows from the key, as security/signing.py says."""
        return cls(sha256(key.raw).hexdigest()[:16], key.raw.hex(), signature.hex())

    def key(self) -> PublicKey:
        """The key that is said to have signed. Raises ValueError."""
        return PublicKey(self.key_id, bytes.fromhex(self.public_key), 0)


def files_of(directory: Path) -> list[Path]:
    """The files of a snapshot or data directory, by name, without those that say nothing of its contents."""
    found = []
    for path in sorted(directory.rglob("*")):
        if path.is_file() and is_content(path.name):
            found.append(path)
    return found


def is_content(name: str) -> bool:
    """Whether a file of this name belongs to a snapshot's contents: not the manifest, a lock or a log for people."""
    return name not in _MACHINE_FILES and not name.startswith(("LOG.old", ".snapshot.json"))


def write(directory: Path, manifest: Manifest, signer: Signer) -> None:
    """Put the manifest and its signature into the directory, durably. Raises OSError."""
    raw = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    write_durably(directory / SIGNATURE_FILE, signed(MANIFEST_PREFIX + raw, signer))
    write_durably(directory / MANIFEST_FILE, raw)


def signed(message: bytes, signer: Signer) -> bytes:
    """The contents of a file with the signature over a message."""
    return msgspec.json.encode(Signature.of(signer.public_key, signer.sign(message)))


def read(directory: Path) -> Manifest | None:
    """The manifest of a directory, None if there is none. Raises BackupCorrupt if the file is not a manifest."""
    path = directory / MANIFEST_FILE
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return decode(raw, str(path))


def decode(raw: bytes, name: str) -> Manifest:
    """The manifest in these bytes. Raises BackupCorrupt, naming it."""
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except UNDECODABLE as error:
        raise BackupCorrupt(f"{name} is not the manifest of a snapshot: {error}") from error
    if manifest.format > FORMAT:
        raise BackupCorrupt(f"{name} has format {manifest.format}, and this version reads up to {FORMAT}")
    for one in manifest.files:
        if one.path.startswith("/") or ".." in Path(one.path).parts:
            raise BackupCorrupt(f"{name} lists {one.path!r}, which is outside of the snapshot")
    return manifest


def objection(
    raw: bytes,
    signature: bytes,
    keys: Mapping[str, PublicKey] | None,
    check: CheckSignature,
    prefix: bytes = MANIFEST_PREFIX,
) -> str:
    """Why the signature over a document's bytes (a manifest's, if the prefix is not another) is not accepted.

    Empty if it is.

    With `keys` None any key is good, as long as it made the signature: that finds damage, not a forger.
    """
    try:
        made = msgspec.json.decode(signature, type=Signature)
        key, made_by = made.key(), bytes.fromhex(made.signature)
    except (*UNDECODABLE, ValueError) as error:
        return f"its .sig cannot be read: {error}"
    if msgspec.json.encode(Signature.of(key, made_by)) != signature:
        return "its .sig is not as it was written"
    if keys is not None and all(key.raw != known.raw for known in keys.values()):
        return f"it is signed by key {made.key_id!r}, which is not among those that are trusted"
    if not check(key, prefix + raw, made_by):
        return f"the signature does not verify with key {made.key_id!r}"
    return ""


def signer_of(signature: bytes) -> PublicKey:
    """The key in a signature that `objection` has accepted."""
    return msgspec.json.decode(signature, type=Signature).key()


def faults(directory: Path, manifest: Manifest, progress: Progress = silent) -> Iterator[str]:
    """What is wrong with the files of a directory, one sentence each, naming the file."""
    done, total = 0, manifest.size_bytes
    listed = {one.path: one for one in manifest.files}

    def read_some(count: int) -> None:
        nonlocal done
        done += count
        progress("files", done, total)

    for name, entry in listed.items():
        path = directory / name
        try:
            size = path.stat().st_size
            if size != entry.size:
                yield f"{name} has {size} bytes, and the manifest says {entry.size}"
            elif digest_of(path, read_some) != entry.sha256:
                yield f"{name} is not what the manifest says: its SHA-256 differs"
        except FileNotFoundError:
            yield f"{name} is missing"
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror}"
    for path in files_of(directory):
        name = path.relative_to(directory).as_posix()
        if name not in listed:
            yield f"{name} is not in the manifest"
