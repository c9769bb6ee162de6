"""Re-encryption, keys and erasure of a node, from its configuration."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from knhk.bootstrap.clustered import shares_journal
from knhk.bootstrap.node import Node
from knhk.bootstrap.stores import KEY_FILE, key_wrapper
from knhk.config.sections import Persistence
from knhk.domain.errors import IllegalTransition
from knhk.persistence.rows import RowStore
from knhk.ports.duty import Duty
from knhk.ports.keys import KeyWrapper
from knhk.protection.archive import SUFFIX
from knhk.protection.blob_archive import BlobArchive
from knhk.protection.blobs import BlobCare
from knhk.protection.erasure import Erasure
from knhk.protection.keys import KeyManagement
from knhk.protection.reencryption import Reencryption
from knhk.protection.retention import Retention, RetentionSettings
from knhk.protection.services import Services
from knhk.protection.signing_keys import SigningKeys
from knhk.recovery.places import Place
from knhk.security.key_ring import KeyRing
from knhk.security.key_wrapping import KEY_BYTES, LocalKeys, read_key_file, write_key_file


class NodeProtection:
    """What protects a node's data while it runs."""

    def __init__(self, node: Node, *, shares: bool = False) -> None:
        """`shares`: other processes work on the same database; what has to be done by one of them is left out."""
        store, persistence, clock = node.store, node.config.persistence, node.clock
        self.keys: KeyManagement | None = None
        self.duties: list[Duty] = []
        area = node.area
        encrypting, ring = None, store.cipher.keys
        if isinstance(ring, KeyRing):
            encrypting = ring if store.cipher.encrypting else None
            reencryption = Reencryption(store, clock, bytes_per_s=persistence.maintenance_rate_bytes)
            self.keys = KeyManagement(ring, store, reencryption, clock, partial(_renewal, persistence, ring), area)
            self.duties.append(reencryption)
        self.erasure = Erasure(node.engine, clock, encrypting, store.note_ring)
        self.retention = None if shares or shares_journal(node.config) else _retention_of(node, store)
        self.duties += [] if self.retention is None else [self.retention]
        if node.keeper is not None and area is not None:
            care = BlobCare(
                area,
                node.keeper,
                node.store,
                clock,
                grace_ns=persistence.blobs.grace_ns,
                archive=_blob_archive_of(node),
                bytes_per_s=persistence.maintenance_rate_bytes,
            )
            self.duties.append(care)
        self.signing = SigningKeys(persistence.key_path, node.signer, clock, store.register_key, store.keys)
        self.duties = [self.signing, self.erasure, *self.duties]

    @property
    def services(self) -> Services:
        """What the API needs of it."""
        return Services(self.erasure, self.keys, self.signing, self.retention)


class ArchivePlace:
    """Where archives are kept: a directory or bucket, as recovery reaches it."""

    def __init__(self, url: str, *, make: bool = True) -> None:
        self._place = Place.of(url, make=make)

    def put(self, name: str, content: bytes | Path) -> None:
        self._place.put(name, content)

    def has(self, name: str) -> bool:
        return self._place.has(name)

    def stream(self, name: str) -> Iterator[bytes]:
        return self._place.stream(name)

    def read(self, name: str) -> bytes:
        return self._place.read(name)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self._place.entries() if entry.name.endswith(SUFFIX))


def _blob_archive_of(node: Node) -> BlobArchive | None:
    url = node.config.persistence.archive
    return None if node.area is None or not url else BlobArchive(node.area, lambda: ArchivePlace(url))


def _retention_of(node: Node, store: RowStore) -> Retention:
    persistence = node.config.persistence
    settings = RetentionSettings(
        persistence.retention_days,
        persistence.maintenance_rate_bytes,
        node.config.platform.node_id,
        node.partition,
        persistence.archive,
    )
    place = (lambda: ArchivePlace(persistence.archive)) if persistence.archive else None
    return Retention(
        settings,
        store,
        node.signer,
        node.clock,
        is_at_rest=node.engine.is_at_rest,
        bar=node.engine.arrivals.bar,
        last_used=lambda: node.last_used_ns,
        place=place,
        blobs=_blob_archive_of(node),
    )


def _renewal(persistence: Persistence, ring: KeyRing) -> tuple[KeyWrapper, Callable[[], None]]:
    """The new key-encryption key, and what to do when the ring is wrapped with it.

    A key file gets a new key in front, and loses the old ones at the end, so that dying in between leaves a file that
    opens the ring. Vault rotates by itself and wraps with its newest version. A variable cannot change in a process.
    """
    source = persistence.encryption_key or f"file:{persistence.key_path / KEY_FILE}"
    kind, _, rest = source.partition(":")
    if kind != "file":
        wrapper = key_wrapper(persistence, may_create=False)
        if kind == "env" and wrapper.key_id == ring.key_id:
            raise IllegalTransition(
                f"the present key is the first one in {rest}, and a process cannot change its variables",
                hint=f"Put the new key in front of the present one in {rest}, with a comma between, and start again.",
            )
        return wrapper, lambda: None
    path = Path(rest).expanduser()
    keys = [os.urandom(KEY_BYTES), *read_key_file(path, may_create=False)]
    write_key_file(path, keys)
    return LocalKeys(keys, rest), lambda: write_key_file(path, keys[:1])
