"""The keys that encrypt data at rest, as the stores need them, and the keys that encrypt those.

    key-encryption key (file, environment, KMS)  wraps the key ring's own key
    key ring                                     holds generations of data keys
    generation                                   a shared key, and a tree of which each run's key is a leaf

A run's leaf can be destroyed, or all leaves of a department, without touching any other: what was encrypted with it
can never be read again, in no copy.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec


class RunPath(msgspec.Struct, frozen=True, array_like=True):
    """Which leaf encrypts a run's payloads. `scope` are the 8 bytes that stand for its department in this ring."""

    generation: int
    scope: bytes
    workflow_id: int


class DataKeys(Protocol):
    """The data keys of one data directory. What it destroys, it has destroyed durably when the method returns."""

    @property
    def ring_id(self) -> bytes:
        """16 bytes that tell this ring from every other."""
        ...

    @property
    def active(self) -> int:
        """The generation that new data are encrypted with."""
        ...

    def knows(self, generation: int) -> bool:
        """Whether the ring has this generation."""
        ...

    def shared_key(self, generation: int) -> bytes:
        """The 32 bytes that encrypt what belongs to no single run. Raises EncryptionKeyUnavailable."""
        ...

    def scope_of(self, department: str) -> bytes:
        """The 8 bytes that stand for a department; without the ring, nobody can tell which."""
        ...

    def run_key(self, path: RunPath) -> bytes:
        """The 32 bytes that encrypt a run's payloads.

        Raises DataErased if they were destroyed, EncryptionKeyUnavailable if the ring has no such generation.
        """
        ...

    @property
    def pending_erasures(self) -> Sequence[RunPath]:
        """Leaves that are to be destroyed as soon as the journal says so."""
        ...

    def intend_erasure(self, runs: Sequence[RunPath]) -> None:
        """Note durably that the leaves of these runs, in every generation, are to be destroyed.

        A crash after the commit then does not forget it.
        """
        ...

    def settle_erasure(self, runs: Sequence[RunPath], *, destroy: bool) -> None:
        """Destroy the leaves that were noted, or, with `destroy` false, drop the note: it was never committed."""
        ...

    def is_doomed(self, scope: bytes) -> bool:
        """Whether a department is being erased, so that its rows must not be given newer keys."""
        ...


class KeyWrapper(Protocol):
    """The key-encryption key, wherever it is. A KMS keeps it to itself and wraps and unwraps on request."""

    @property
    def key_id(self) -> str:
        """The id of the present key-encryption key."""
        ...

    def wrap(self, raw: bytes) -> tuple[str, bytes]:
        """The id of the present key-encryption key, and `raw` encrypted with it. Raises EncryptionKeyUnavailable."""
        ...

    def unwrap(self, key_id: str, wrapped: bytes) -> bytes:
        """What was wrapped with the key of this id.

        Raises EncryptionKeyUnavailable if that key is not at hand, KeyRingCorrupt if it is and the bytes are not what
        it wrapped.
        """
        ...
