"""Payloads: the values that steps take and give, as bytes with a digest.

A payload is JSON-like data (None, bool, int of 64 bits, float, str, list, dict with string keys) in msgpack with sorted
keys, so that equal values have equal bytes and the receipts need to hold only the SHA-256 of them.
"""

from hashlib import sha256
from typing import Any

import msgspec

from knhk.domain.errors import InvalidInput

_ENCODER = msgspec.msgpack.Encoder(order="sorted")
_DECODER = msgspec.msgpack.Decoder()


def encode(value: Any) -> bytes:
    """Canonical bytes of a value. Raises InvalidInput if it cannot be represented."""
    try:
        return _ENCODER.encode(value)
    except (TypeError, OverflowError, msgspec.EncodeError, RecursionError, UnicodeEncodeError) as error:
        raise InvalidInput(f"the value cannot be stored: {error}") from error


def decode(raw: bytes) -> Any:
    """The value of a payload. Raises msgspec.DecodeError if the bytes are not msgpack."""
    return _DECODER.decode(raw)


def digest(raw: bytes) -> bytes:
    """SHA-256 of a payload's bytes."""
    return sha256(raw).digest()
