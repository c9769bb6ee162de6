"""Rows of blocks as bytes, the same in every store: msgpack SignedBlock."""

from typing import Final

import msgspec

from knhk.domain.errors import JournalCorrupt
from knhk.domain.receipt import SignedBlock

_SIGNED_BLOCK: Final = msgspec.msgpack.Decoder(SignedBlock)


def decode_signed_block(raw: bytes, partition: int, height: int) -> SignedBlock:
    """A stored block. Raises JournalCorrupt, naming it, if the bytes are not one, or its header's are not a header."""
    try:
        signed = _SIGNED_BLOCK.decode(raw)
        signed.block()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JournalCorrupt(f"block {height} of partition {partition} cannot be decoded: {error}") from error
    return signed
