"""Keys of encryption for operators: list, rotate, destroy. Everything is done while the server runs."""

import asyncio
from collections.abc import Callable
from typing import Any

from knhk.domain.errors import IllegalTransition
from knhk.domain.times import rfc3339
from knhk.persistence.blob_area import BlobArea
from knhk.persistence.rows import RowStore
from knhk.ports.environment import Clock
from knhk.ports.keys import KeyWrapper
from knhk.protection.reencryption import Reencryption
from knhk.security.key_ring import KeyRing, Wrapping

Renewal = Callable[[], tuple[KeyWrapper, Callable[[], None]]]
"""Gives the new key-encryption key, and what is to be done when nothing is wrapped with the old one any more."""


class KeyManagement:
    """The key ring of a running server."""

    def __init__(
        self,
        ring: KeyRing,
        store: RowStore,
        reencryption: Reencryption,
        clock: Clock,
        renewal: Renewal,
        blobs: BlobArea | None = None,
    ) -> None:
        self._blobs = blobs
        self._ring, self._store, self._reencryption, self._clock = ring, store, reencryption, clock
        self._renewal = renewal
        self._turn = asyncio.Lock()

    async def status(self) -> dict[str, Any]:
        """The ring without its secrets, and how far re-encryption is."""
        ring = self._ring
        return {
            "encryption": self._store.cipher.encrypting,
            "ring": ring.ring_id.hex(),
            "key_encryption_key": ring.key_id,
            "generations": [
                {
                    "generation": number,
                    "state": "active" if number == ring.active else "retired",
                    "created_at": rfc3339(created_at_ns),
                    "tree_nodes": nodes,
                }
                for number, created_at_ns, nodes in ring.generations
            ],
            "erasures_pending": len(ring.pending_erasures) + len(ring.department_erasures),
            "reencryption": await self._reencryption.status(),
        }

    async def rotate_data_keys(self) -> int:
        """Encrypt new rows with new keys from now on, and old rows in the background; the new generation's number."""
        ring = self._require()
        number = ring.add_generation(self._clock.now_ns())
        await self._store.note_ring()
        self._reencryption.wake()
        return number

    async def rotate_key_encryption_key(self) -> str:
        """Wrap the ring's key with a new key-encryption key; its id."""
        ring = self._require()
        async with self._turn:
            wrapper, finish = self._renewal()
            ring.rewrap(await asyncio.to_thread(Wrapping.by, wrapper))
            finish()
        return ring.key_id

    def destroy(self, generation: int) -> None:
        """Destroy a retired generation. Refused while rows of it may be left; backups that need it are lost."""
        ring = self._require()
        if not self._reencryption.complete:
            raise IllegalTransition(
                "re-encryption is under way: rows may need older keys",
                hint="Wait until `knhk keys status` says that it is complete.",
            )
        if self._blobs is not None and generation in self._blobs.generations():
            raise IllegalTransition(
                f"blobs are still encrypted with generation {generation}",
                hint="They are encrypted anew within an hour after a rotation, in the background.",
            )
        ring.drop_generation(generation)

    def _require(self) -> KeyRing:
        if not self._store.cipher.encrypting:
            raise IllegalTransition(
                "the data are not encrypted", hint="Set `persistence.encryption: true` and start the server again."
            )
        return self._ring
