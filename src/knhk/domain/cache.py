"""What a step gives may be used again for a while by others that would do the same: when, and by which key."""

from hashlib import sha256
from typing import Any, Final

import msgspec

from knhk.domain import payload
from knhk.domain.expressions import Scope, Template

_FORMAT: Final = b"cache 1"


class Cache(msgspec.Struct, frozen=True):
    """`cache` of a step. `identity` is a digest of what the step does as it is written: action, version, params.

    What is given is used again for `ttl_ns` nanoseconds after the step has completed.
    """

    key: Template
    ttl_ns: int
    identity: bytes


def identity_of(*parts: Any) -> bytes:
    """The digest of what a step does."""
    return sha256(payload.encode(list(parts))).digest()


def cache_key(cache: Cache, department: str, scope: Scope) -> bytes:
    """The key under which a step finds and leaves what it gives; departments never share one.

    Raises InvalidInput if the key cannot be evaluated.
    """
    written = [department, cache.identity.hex(), cache.key.evaluate(scope)]
    return sha256(_FORMAT + payload.encode(written)).digest()
