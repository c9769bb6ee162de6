"""An engine that keeps everything in memory, for tests of workflows."""

import random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from knhk.actions.registry import Registry
from knhk.domain.units import DAY
from knhk.engine.service import Engine, Settings
from knhk.persistence.memory import MemoryStore
from knhk.platform.ids import SnowflakeIds
from knhk.ports.environment import Clock
from knhk.security.signing import Ed25519Signer


def in_memory(registry: Registry, clock: Clock, seed: int = 0) -> Engine:
    """An engine with default limits. Nothing of it is left when it is gone; idle, it looks around but once a day."""
    store = MemoryStore()
    return Engine(
        Settings(node_id="test", threads=1, min_free_bytes=0, idle_ns=DAY),
        registry,
        append=store,
        journal=store,
        projections=store,
        storage=store,
        signer=Ed25519Signer(Ed25519PrivateKey.generate(), clock.now_ns()),
        clock=clock,
        ids=SnowflakeIds(clock),
        rng=random.Random(seed),
    )
