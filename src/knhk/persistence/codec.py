"""Rows of payloads as bytes: a marker byte, then the msgpack array of the payloads, compressed where that pays.

    0x00 || msgpack          as it is
    0x01 || zstd frame       of the msgpack; the frame says its own length

A step's inputs and outputs resemble each other, so that the payloads of one row are compressed together.
"""

from typing import Final

import msgspec
import zstandard

from knhk.domain.errors import ReceiptCorrupt
from knhk.domain.identifier import to_text
from knhk.ports.append import Payload

PLAIN: Final = b"\x00"
ZSTD: Final = b"\x01"
WORTH_COMPRESSING_BYTES: Final = 256
LEVEL: Final = 1
MAX_ROW_BYTES: Final = 1 << 30

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[Payload])
_DECOMPRESSOR = zstandard.ZstdDecompressor()


class PayloadCodec:
    """Encodes rows of payloads. One object per thread: the compressor keeps its working memory."""

    def __init__(self, compression: bool) -> None:
        self._compressor = zstandard.ZstdCompressor(level=LEVEL) if compression else None

    def encode(self, payloads: list[Payload]) -> bytes:
        """The row's bytes, compressed if the codec compresses, the row is not small and it shrinks."""
        raw = _ENCODER.encode(payloads)
        if self._compressor is not None and len(raw) > WORTH_COMPRESSING_BYTES:
            packed = self._compressor.compress(raw)
            if len(packed) < len(raw):
                return ZSTD + packed
        return PLAIN + raw


def decode(row: bytes, workflow_id: int = 0) -> list[Payload]:
    """The payloads of a row, whether compressed or not. Raises ReceiptCorrupt, naming the run, if it is not one."""
    try:
        return _decode(row)
    except ReceiptCorrupt as error:
        if workflow_id:
            raise ReceiptCorrupt(f"{to_text(workflow_id)}: {error.message}") from error
        raise


def _decode(row: bytes) -> list[Payload]:
    try:
        marker = row[:1]
        if marker == PLAIN:
            return _DECODER.decode(memoryview(row)[1:])
        if marker == ZSTD:
            size = zstandard.frame_content_size(row[1:])
            if not 0 <= size <= MAX_ROW_BYTES:
                raise ReceiptCorrupt(f"a compressed row of payloads says that it has {size} bytes")
            return _DECODER.decode(_DECOMPRESSOR.decompress(row[1:]))
    except (msgspec.DecodeError, UnicodeDecodeError, zstandard.ZstdError) as error:
        raise ReceiptCorrupt(f"a row of payloads cannot be decoded: {error}") from error
    raise ReceiptCorrupt(f"a row of payloads starts with {marker.hex() or 'nothing'}, which no version writes")
