"""The section `recovery`: snapshots, backups, and continuous shipping."""

from pydantic import Field

from knhk.config.sections import default_data_path
from knhk.config.values import Duration, Location, Section
from knhk.domain.units import MINUTE, SECOND


class Recovery(Section):
    """Snapshots, backups, and continuous shipping."""

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
    backup_to: str = Field(
        default="",
        description="Where backups and shipped segments go: a directory, or a URL such as `s3://bucket/prefix`; "
        "empty ships nothing.",
    )
    ship_interval_ns: Duration = Field(
        default=SECOND,
        gt=0,
        description="Longest time from a commit until it is on its way to `backup_to`.",
    )
    ship_before_acknowledging: bool = Field(
        default=False,
        description="Where each node of a cluster has its own journal: a commit counts only when it has arrived in "
        "`backup_to` too, so that a takeover loses nothing. Each step then waits for that place.",
    )
    drill_interval_ns: Duration = Field(
        default=0,
        ge=0,
        description="Time between restore drills, which need room for a copy of the data; `0s`: on request alone.",
    )
    max_ship_lag_ns: Duration = Field(
        default=MINUTE, gt=0, description="How long a commit may take to arrive in `backup_to` before health says so."
    )
