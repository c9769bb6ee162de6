"""Rotation of the key that signs blocks, while the server runs. Old blocks and proofs stay valid: old keys stay listed.

    1. the new key is written beside the old one        signing-next.pem
    2. its public half is kept with the journal
    3. the old key's id is noted                        signing-retiring
    4. the new key takes the old one's place            signing.pem
    5. the next block is signed with it, and the journal notes when the old key was retired

Dying after any of them leaves a key that signs and is known; the next start does what is left.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from knhk.domain.errors import InvalidConfiguration
from knhk.observability.logs import get
from knhk.ports.environment import Clock, PublicKey
from knhk.security.files import write_private
from knhk.security.signing import KEY_FILE, Ed25519Signer

NEXT_FILE: Final = "signing-next.pem"
RETIRING_FILE: Final = "signing-retiring"

Register = Callable[[PublicKey], Awaitable[None]]
Registered = Callable[[], Awaitable[list[PublicKey]]]


class SigningKeys:
    """Implements ports.duty.Duty: finishes a rotation that a crash interrupted."""

    room = "persistence"

    def __init__(
        self, directory: Path, signer: Ed25519Signer, clock: Clock, register: Register, registered: Registered
    ) -> None:
        self._directory, self._signer, self._clock = directory, signer, clock
        self._register, self._registered = register, registered
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Retire the key that was being replaced when the process died, if it was.

        Raises InvalidConfiguration if the note of it is damaged.
        """
        note = self._directory / RETIRING_FILE
        (self._directory / NEXT_FILE).unlink(missing_ok=True)
        if not note.exists():
            return
        retiring = note.read_bytes().decode(errors="replace")
        if all(key.key_id != retiring for key in await self._registered()):
            raise InvalidConfiguration(
                f"{note} is damaged: it names a key that never signed here",
                hint="Write the id of the key that was being replaced into it: `knhk receipts keys` lists them.",
            )
        await self._retire(retiring)

    async def stop(self) -> None:
        """Nothing is under way but what a caller waits for."""

    def health(self) -> str:
        """Nothing to say: who rotates is told."""
        return "ok"

    async def rotate(self) -> PublicKey:
        """Sign with a new key from the next block on; the new key's public half."""
        async with self._turn:
            old = self._signer.public_key
            successor = Ed25519Signer.write_new(self._directory / NEXT_FILE, self._clock.now_ns())
            await self._register(successor.public_key)
            write_private(self._directory / RETIRING_FILE, old.key_id.encode())
            write_private(self._directory / KEY_FILE, (self._directory / NEXT_FILE).read_bytes())
            self._signer.take_over(successor)
            await self._retire(old.key_id)
            get("knhk.protection").info("rotated the signing key", key=successor.public_key.key_id, retired=old.key_id)
            return successor.public_key

    async def _retire(self, key_id: str) -> None:
        """Note when a key signed for the last time, unless it is the present one: then it was not replaced."""
        for key in await self._registered():
            if key.key_id == key_id != self._signer.public_key.key_id and not key.retired_at_ns:
                await self._register(replace(key, retired_at_ns=self._clock.now_ns()))
        (self._directory / NEXT_FILE).unlink(missing_ok=True)
        (self._directory / RETIRING_FILE).unlink(missing_ok=True)
