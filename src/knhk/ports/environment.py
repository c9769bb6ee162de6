"""What the engine takes from the world around it besides storage: time, ids, signatures."""

from collections.abc import Callable
from typing import Protocol

import msgspec


class PublicKey(msgspec.Struct, frozen=True, array_like=True):
    """A key that verifies blocks: 32 raw Ed25519 bytes, in use from `created_at_ns` to `retired_at_ns` (0: still)."""

    key_id: str
    raw: bytes
    created_at_ns: int
    retired_at_ns: int = 0


class Cancellable(Protocol):
    """A call that was put off and can be called off."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time. It MUST NOT run backwards while the process lives, whatever is done to the machine's clock."""

    def now_ns(self) -> int:
        """Unix time in nanoseconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let others run for a while."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Cancellable:
        """Call back on the event loop."""
        ...


class Ids(Protocol):
    """New workflow ids, unique over all processes and restarts of a partition."""

    def next_id(self, partition: int) -> int: ...


class Signer(Protocol):
    """The key with which this node signs blocks."""

    @property
    def public_key(self) -> PublicKey: ...

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature (RFC 8032), 64 bytes."""
        ...
