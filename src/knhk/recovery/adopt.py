"""Before a store is written to: is its directory whole, if it was put there by copying a snapshot?

A directory that still has the manifest of a snapshot has not been started since it was copied. Its files are compared
with the manifest, so that an incomplete or altered copy does not become a journal; then the manifest, which the first
write makes untrue, is removed.
"""

from pathlib import Path

from knhk.domain.errors import BackupCorrupt
from knhk.persistence.rocksdb_errors import translated
from knhk.persistence.sync import sync_path
from knhk.recovery import manifest as manifests
from knhk.recovery.manifest import MANIFEST_FILE, SIGNATURE_FILE
from knhk.recovery.restore import refuse_unfinished


def settle(data: Path) -> None:
    """Make a data directory ready for writing.

    Raises:
        BackupCorrupt: it is a snapshot's copy, and not what the manifest says.
        Corrupt: a restore was interrupted in its last step.
    """
    refuse_unfinished(data)
    manifest = manifests.read(data)
    if manifest is None:
        return
    found = list(manifests.faults(data, manifest))
    if found:
        raise BackupCorrupt(
            f"{data} is an incomplete or altered copy of a snapshot: {'; '.join(found[:5])}",
            hint="Empty the directory and copy again, or use `knhk recover --snapshot`, which does it all.",
        )
    try:
        (data / MANIFEST_FILE).unlink()
        (data / SIGNATURE_FILE).unlink(missing_ok=True)
        sync_path(data)
    except OSError as error:
        raise translated(error, data, "removing the manifest") from error
