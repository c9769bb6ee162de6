"""The section `recovery`: snapshots, and where they go."""

from pydantic import Field

from knhk.config.sections import default_data_path
from knhk.config.values import Duration, Location, Section
from knhk.domain.units import MINUTE


class Recovery(Section):
    """Snapshots."""

    snapshot_interval_ns: Duration = Field(
        default=5 * MINUTE, gt=0, description="Time between automatic snapshots, if anything was committed meanwhile."
    )
    max_snapshots: int = Field(
        default=10, ge=1, description="Snapshots that are kept; older ones are removed, unless they are in use."
    )
    checkpoint_path: Location = Field(
        default_factory=lambda: default_data_path().parent / "checkpoints",
        description="The directory of the snapshots, on the file system of the data, so that they can be hard links.",
        json_schema_extra={"default": "the directory `checkpoints` beside `persistence.path`"},
    )
