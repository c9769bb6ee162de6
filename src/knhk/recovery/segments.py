"""Segments: consecutive blocks of one partition in one file. docs/segments.md is the format for others.

    'KNHKSEG1' | header length 4, big-endian | header, JSON | body | Ed25519 signature 64

The signature is over 0x06 || SHA-256 of all bytes before it. The body is a zstd frame of the msgpack array
[keys, ring, blocks, pruned]; blocks are BlockRows (persistence/stored_blocks.py), with rows as they are stored, so that
what is encrypted at rest is encrypted in a segment, row by row, with keys that are not in it.
"""

from collections.abc import Sequence
from hashlib import sha256
from struct import Struct
from typing import Final

import msgspec
import zstandard

from knhk.domain.errors import BackupCorrupt
from knhk.domain.receipt import SignedBlock
from knhk.persistence.stored_blocks import BlockRows
from knhk.persistence.verification import UNDECODABLE, CheckSignature
from knhk.ports.environment import PublicKey, Signer

MAGIC: Final = b"KNHKSEG1"
SEGMENT_PREFIX: Final = b"\x06"
FORMAT: Final = 1
MOST_BODY_BYTES: Final = 1 << 30
_LENGTH: Final = Struct(">I")
_SIGNATURE_BYTES: Final = 64
_MOST_HEADER_BYTES: Final = 1 << 20


class Header(msgspec.Struct, frozen=True):
    """What a segment says of itself. Times are Unix time in nanoseconds, hashes and keys hexadecimal."""

    format: int
    history: str
    partition: int
    first: int
    last: int
    receipts: int
    previous_block_hash: str
    last_block_hash: str
    from_ns: int
    until_ns: int
    node_id: str
    key_id: str
    public_key: str
    body_sha256: str
    body_bytes: int
    compression: str = "zstd"

    def signer(self) -> PublicKey:
        """The key that is said to have signed. Raises ValueError."""
        return PublicKey(self.key_id, bytes.fromhex(self.public_key), 0)


class Body(msgspec.Struct, frozen=True, array_like=True):
    """Rows of public keys (key id, row), the row that names the key ring (empty: none), the blocks, records of pruning.

    The records (key, row) are there if a run of the blocks had been pruned before they were shipped.
    """

    keys: list[tuple[bytes, bytes]]
    ring: bytes
    blocks: list[BlockRows]
    pruned: list[tuple[bytes, bytes]] = []


_SIGNED: Final = msgspec.msgpack.Decoder(SignedBlock)
_BODY: Final = msgspec.msgpack.Decoder(Body)
_ENCODER: Final = msgspec.msgpack.Encoder()


def folder(history: str, partition: int) -> str:
    """Where the segments of a partition are."""
    return f"segments/{history}/p{partition:04d}"


def name_of(history: str, partition: int, first: int, last: int) -> str:
    """The name of the segment with these blocks. Names sort as the blocks do."""
    return f"{folder(history, partition)}/{first:016d}-{last:016d}.seg"


def heights_of(name: str) -> tuple[int, int] | None:
    """First and last height in a segment's name; None if it is not one."""
    stem, dot, kind = name.rpartition("/")[2].partition(".")
    first, dash, last = stem.partition("-")
    if (dot, kind, dash) != (".", "seg", "-") or not (first.isdecimal() and last.isdecimal()):
        return None
    return int(first), int(last)


def encode(body: Body, *, history: str, node_id: str, signer: Signer, level: int = 3) -> tuple[Header, bytes]:
    """A segment of these blocks, which must not be none: its header and its bytes."""
    opening, closing = (_SIGNED.decode(body.blocks[at].block) for at in (0, -1))
    first, last = opening.block(), closing.block()
    packed = zstandard.ZstdCompressor(level=level, write_content_size=True).compress(_ENCODER.encode(body))
    key = signer.public_key
    header = Header(
        FORMAT,
        history,
        first.partition,
        first.height,
        last.height,
        last.first_offset + last.count - first.first_offset,
        first.previous_block_hash.hex(),
        closing.hash().hex(),
        first.at_ns,
        last.at_ns,
        node_id,
        key.key_id,
        key.raw.hex(),
        sha256(packed).hexdigest(),
        len(packed),
    )
    told = msgspec.json.encode(header)
    raw = b"".join((MAGIC, _LENGTH.pack(len(told)), told, packed))
    return header, raw + signer.sign(SEGMENT_PREFIX + sha256(raw).digest())


def decode(raw: bytes, name: str, trusted: Sequence[PublicKey] | None, check: CheckSignature) -> tuple[Header, Body]:
    """Header and body of a segment; with `trusted`, only if one of these keys signed it.

    Raises BackupCorrupt, naming the segment and what is wrong with it.
    """
    header, start = decode_header(raw, name)
    signed, signature = raw[:-_SIGNATURE_BYTES], raw[-_SIGNATURE_BYTES:]
    packed = signed[start:]
    if len(packed) != header.body_bytes:
        raise BackupCorrupt(f"{name} is cut or has grown: its body has {len(packed)} bytes, not {header.body_bytes}")
    if sha256(packed).hexdigest() != header.body_sha256:
        raise BackupCorrupt(f"{name} is damaged: the SHA-256 of its body differs")
    try:
        signer = header.signer()
    except ValueError as error:
        raise BackupCorrupt(f"{name}: its key cannot be read: {error}") from error
    if trusted is not None and all(signer.raw != key.raw for key in trusted):
        raise BackupCorrupt(f"{name} is signed by key {header.key_id!r}, which is not among those that are trusted")
    if not check(signer, SEGMENT_PREFIX + sha256(signed).digest(), signature):
        raise BackupCorrupt(f"{name} is damaged or forged: its signature does not verify")
    try:
        if not 0 <= zstandard.frame_content_size(packed) <= MOST_BODY_BYTES:
            raise BackupCorrupt(f"{name}: its body does not say a sensible size")
        return header, _BODY.decode(zstandard.ZstdDecompressor().decompress(packed))
    except (zstandard.ZstdError, *UNDECODABLE) as error:
        raise BackupCorrupt(f"{name}: its body cannot be decoded: {error}") from error


def decode_header(raw: bytes, name: str) -> tuple[Header, int]:
    """The header, unverified, and where the body begins. Raises BackupCorrupt."""
    start = len(MAGIC) + _LENGTH.size
    if raw[: len(MAGIC)] != MAGIC or len(raw) < start + _SIGNATURE_BYTES:
        raise BackupCorrupt(f"{name} is not a segment, or it is cut")
    (length,) = _LENGTH.unpack_from(raw, len(MAGIC))
    if length > min(_MOST_HEADER_BYTES, len(raw)):
        raise BackupCorrupt(f"{name}: its header cannot be read")
    try:
        header = msgspec.json.decode(raw[start : start + length], type=Header)
    except UNDECODABLE as error:
        raise BackupCorrupt(f"{name}: its header cannot be read: {error}") from error
    if header.format > FORMAT:
        raise BackupCorrupt(f"{name} has format {header.format}, and this version reads up to {FORMAT}")
    return header, start + length
