"""A store remembers its key ring, so that a lost, foreign or outdated one is refused and never replaced.

meta 'ring'     ring id 16 | newest generation that was used 4
"""

from pathlib import Path
from typing import Final

from rocksdict import WriteBatch

from knhk.domain.errors import EncryptionKeyUnavailable
from knhk.persistence.rocksdb_database import Counters, Database
from knhk.persistence.rocksdb_keys import RING_KEY
from knhk.persistence.rocksdb_opening import open_database
from knhk.persistence.rocksdb_options import StoreOptions
from knhk.ports.keys import DataKeys

_ID_BYTES: Final = 16
_LOST: Final = (
    "Put the key ring back where `persistence.key_path` says. Without it nothing that was encrypted can be read; a new "
    "one would not help. See docs/encryption.md."
)


def check_ring(stored: bytes | None, path: Path | str, keys: DataKeys | None, *, must_have: bool) -> None:
    """Raise EncryptionKeyUnavailable if the data need another ring than the one given, or one at all.

    `stored` is what the store remembers, under RING_KEY in `meta`; `path` is where it is, for people.
    """
    if stored is None:
        return
    if keys is None:
        if must_have:
            raise EncryptionKeyUnavailable(f"{path} has encrypted data, and there is no key ring", hint=_LOST)
        return
    ring_id, newest = stored[:_ID_BYTES], int.from_bytes(stored[_ID_BYTES:])
    if ring_id != keys.ring_id:
        raise EncryptionKeyUnavailable(
            f"{path} is encrypted with key ring {ring_id.hex()[:16]}, and the one given is {keys.ring_id.hex()[:16]}",
            hint=_LOST,
        )
    if newest > keys.active:
        raise EncryptionKeyUnavailable(
            f"{path} is encrypted with generation {newest} of its keys, and the ring ends with {keys.active}: it is "
            "an old copy",
            hint=_LOST,
        )


def ring_row(keys: DataKeys) -> bytes:
    """What a store remembers of its ring."""
    return keys.ring_id + keys.active.to_bytes(4)


def note_ring(database: Database, keys: DataKeys) -> None:
    """Remember the ring and its newest generation, durably, before the first row that needs them."""
    wanted = ring_row(keys)
    if database.get("meta", RING_KEY) != wanted:
        batch = WriteBatch(raw_mode=True)
        batch.put(RING_KEY, wanted, database.handles["meta"])
        database.write(batch)
        database.sync()


def needs_ring(path: Path, options: StoreOptions) -> bool:
    """Whether a data directory, which may not exist yet, was encrypted with a ring. Raises as open_database does."""
    if not (path / "CURRENT").exists():
        return False
    database, _ = open_database(path, options, Counters(), read_only=True)
    try:
        return database.get("meta", RING_KEY) is not None
    finally:
        database.close()
