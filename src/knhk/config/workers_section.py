"""The section `workers`: remote workers and their leases."""

from pydantic import Field

from knhk.config.values import Duration, Section
from knhk.domain.units import MINUTE, SECOND


class Workers(Section):
    """Remote workers, which take attempts from queues over HTTP."""

    lease_ns: Duration = Field(
        default=MINUTE, ge=SECOND, description="How long a worker may be silent that asks for no other time."
    )
    max_lease_ns: Duration = Field(
        default=60 * MINUTE, ge=SECOND, description="Longest lease that a worker may ask for."
    )
    max_deliveries: int = Field(
        default=5, ge=1, description="How often an attempt is given out before it counts as failed."
    )
    max_wait_ns: Duration = Field(default=MINUTE, ge=0, description="Longest time that a poll may wait for work.")
    max_batch: int = Field(default=100, ge=1, le=10_000, description="Most attempts that one poll is given.")
