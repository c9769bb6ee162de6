"""The section `scaling`: how many replicas there may be, and who changes their number. docs/scaling.md says how."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from knhk.config.values import CaseBlind, Duration, Location, Section
from knhk.domain.units import MINUTE, SECOND


class Scaling(Section):
    """How many replicas run; `platform.enable_auto_scaling` switches it on."""

    min_replicas: int = Field(default=1, ge=1, description="Fewest replicas.")
    max_replicas: int = Field(default=100, ge=1, description="Most replicas.")
    target_cpu: int = Field(default=70, ge=1, le=100, description="CPU load to aim at, in percent.")
    target_memory: int = Field(default=70, ge=1, le=100, description="Memory use to aim at, in percent.")
    scale_up_cooldown_ns: Duration = Field(default=5 * MINUTE, ge=0, description="Shortest time between two increases.")
    scale_down_cooldown_ns: Duration = Field(
        default=10 * MINUTE, ge=0, description="Shortest time from any change to a decrease."
    )
    driver: Annotated[Literal["auto", "kubernetes", "processes", "dry-run"], CaseBlind] = Field(
        default="auto",
        description="What changes the number: `kubernetes` the StatefulSet of this pod, `processes` those of this "
        "machine; `dry-run` only says what it would do. `auto` takes the first that is there.",
    )
    statefulset: str = Field(
        default="",
        pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$",
        description="The StatefulSet whose replicas are changed.",
        json_schema_extra={"default": "the pod's name without its ordinal"},
    )
    service_account_path: Location = Field(
        default=Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        description="Directory of the pod's token, CA certificate and namespace.",
    )
    check_interval_ns: Duration = Field(default=15 * SECOND, gt=0, description="Time between two looks at the load.")
    drain_limit_ns: Duration = Field(
        default=10 * MINUTE,
        gt=0,
        description="How long replicas that are to go may take to give their work away; then it is called off.",
    )
