"""The blob area of a node, from its configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from knhk.bootstrap.clustered import has_own_journal, shares_journal
from knhk.config import Config
from knhk.config.sections import Persistence
from knhk.domain.errors import InvalidConfiguration
from knhk.persistence.blob_area import FOLDER, BlobArea
from knhk.persistence.partition_directories import neighbours_of
from knhk.ports.blobs import NoBlobs

if TYPE_CHECKING:
    from knhk.persistence.postgres import PostgresStore
    from knhk.persistence.rocksdb import RocksDbStore


def blob_path(persistence: Persistence) -> Path | None:
    """The directory of the blobs; None if there are none. Raises InvalidConfiguration."""
    if persistence.url:
        return persistence.blobs.path
    if persistence.blobs.path is not None:
        raise InvalidConfiguration(
            "persistence.blobs.path is for PostgreSQL: a data directory has its blobs in itself",
            hint=f"To have them on another disk, mount it, or link to it, at {persistence.path / FOLDER}.",
        )
    return persistence.path / FOLDER


def blobs_of(
    config: Config,
    store: "RocksDbStore | PostgresStore",
    partition: int,
    number: Callable[[], int],
    now_ns: Callable[[], int],
) -> BlobArea | NoBlobs:
    """The blobs of a node's runs. `number` gives new unique numbers, `now_ns` Unix time."""
    persistence, options = config.persistence, config.persistence.blobs
    path = blob_path(persistence)
    if path is None:
        return NoBlobs("the journal is in PostgreSQL, and `persistence.blobs.path` names no directory for them")
    if has_own_journal(config):
        return NoBlobs("the nodes of this cluster have a data directory each")
    if shares_journal(config) and persistence.encryption:
        return NoBlobs("the nodes of a cluster do not share a key ring, and `persistence.encryption` is on")

    def neighbours() -> list[Path]:
        if persistence.url:
            return []
        return [directory / FOLDER for directory in neighbours_of(persistence.path, partition)]

    cipher = store.cipher
    return BlobArea(
        path,
        inline_bytes=options.inline_bytes,
        data_bytes=persistence.max_payload_bytes,
        max_bytes=options.max_bytes,
        min_free_bytes=persistence.min_free_bytes,
        keys=cipher.keys,
        encrypting=cipher.encrypting,
        number=number,
        now_ns=now_ns,
        neighbours=neighbours,
    )
