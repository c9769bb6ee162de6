"""References to blobs: large payloads that lie in the blob area, by the SHA-256 of their bytes.

    {"$blob": "sha256:<64 hexadecimal digits>", "size": <bytes>, "media_type": "<type>/<subtype>"}

Such a mapping stands wherever JSON-like data stand: in inputs, params and outputs. It is passed on as any other value.
"""

import re
from typing import Any, Final, Self

import msgspec

from knhk.domain.errors import InvalidParameter

KEY: Final = "$blob"
OCTETS: Final = "application/octet-stream"
TEXT: Final = "text/plain; charset=utf-8"
CSV: Final = "text/csv; charset=utf-8"
JSON: Final = "application/json"
JSON_LINES: Final = "application/x-ndjson"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}(; ?[\w.+-]{1,50}=[\w.+\"-]{1,100}){0,5}", re.ASCII)
KEY_BYTES: Final = b"\xa5" + KEY.encode()
"""A payload whose bytes do not have these in them refers to no blob."""
# Neither 0xa5 nor 0xd9 can begin a character of UTF-8, so no text in a payload looks like this.
_IN_PAYLOAD: Final = re.compile(re.escape(KEY_BYTES) + rb"\xd9\x47(sha256:[0-9a-f]{64})")


class BlobReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Stands for a blob: its digest, its size in bytes, and what kind of data it is."""

    digest: str = msgspec.field(name=KEY)
    size: int = 0
    media_type: str = OCTETS

    def to_dict(self) -> dict[str, Any]:
        """As JSON-like data."""
        return {KEY: self.digest, "size": self.size, "media_type": self.media_type}

    @classmethod
    def of(cls, value: Any) -> Self | None:
        """The reference that this JSON-like value is; None if it is none."""
        digest = value.get(KEY) if isinstance(value, dict) else None
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            return None
        size, media_type = value.get("size", 0), value.get("media_type", OCTETS)
        return cls(digest, size if type(size) is int else 0, media_type if type(media_type) is str else OCTETS)


def checked_digest(text: str) -> str:
    """The digest, with `sha256:` in front. Raises InvalidParameter if it is none."""
    digest = text if text.startswith("sha256:") else f"sha256:{text}"
    if not _DIGEST.fullmatch(digest):
        raise InvalidParameter(f"{text[:100]!r} is not the digest of a blob: `sha256:` and 64 digits of 0-9 and a-f")
    return digest


def is_media_type(text: str) -> bool:
    """Whether this is a media type, such as `text/csv; charset=utf-8`."""
    return _MEDIA_TYPE.fullmatch(text) is not None


def checked_media_type(text: str) -> str:
    """The media type. Raises InvalidParameter if it is none."""
    if not is_media_type(text):
        raise InvalidParameter(f"{text[:100]!r} is not a media type, such as text/csv")
    return text


def digests_in(raw: bytes) -> list[str]:
    """The digests of the blobs that a payload's bytes (see knhk.domain.payload) refer to, each once."""
    if KEY_BYTES not in raw:
        return []
    return list(dict.fromkeys(found.decode() for found in _IN_PAYLOAD.findall(raw)))
