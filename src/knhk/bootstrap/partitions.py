"""The configuration of a partition that has a store of its own."""

from pathlib import Path

from knhk.config import Config
from knhk.persistence.partition_directories import directory_of
from knhk.recovery.backups import own_name, own_place


def config_of(config: Config, partition: int) -> Config:
    """The configuration of a partition that has a data directory of its own: all that belongs to it has its own place.

    In a database all partitions are together, and the first partition of a data directory is that directory.
    """
    if not partition or config.persistence.url:
        return config
    return config_at(config, partition, directory_of(config.persistence.path, partition))


def config_at(config: Config, partition: int, path: Path) -> Config:
    """The configuration of a partition whose data directory is at a path."""
    persistence, recovery = config.persistence, config.recovery
    changes = {
        "persistence": persistence.model_copy(
            update={"path": path, "archive": own_place(persistence.archive, partition)}
        ),
        "recovery": recovery.model_copy(
            update={
                "checkpoint_path": recovery.checkpoint_path / own_name(partition),
                "backup_to": own_place(recovery.backup_to, partition),
            }
        ),
    }
    return config.model_copy(update=changes)
