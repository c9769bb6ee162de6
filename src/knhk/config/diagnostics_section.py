"""What is kept and watched so that an operator can find out what is wrong."""

import os
from pathlib import Path

from pydantic import Field

from knhk.config.sections import data_path
from knhk.config.values import Duration, Location, Section, Size
from knhk.domain.units import MB, SECOND


def _default_path() -> Path:
    return data_path(os.environ).parent / "diagnostics"


class Diagnostics(Section):
    """The flight recorder, the watchdog of the event loop, and who may use the /debug routes."""

    path: Location = Field(
        default_factory=_default_path,
        description="The directory of the flight recorder: the last log lines, the process id, what a wedged one did.",
        json_schema_extra={"default": "the directory `diagnostics` beside `persistence.path`"},
    )
    log_size_bytes: Size = Field(default=8 * MB, ge=0, description="Log lines that the flight recorder keeps at most.")
    stall_after_ns: Duration = Field(
        default=SECOND,
        gt=0,
        description="How long the event loop may be blocked before that is reported, with its cause.",
    )
    restart_after_ns: Duration = Field(
        default=60 * SECOND,
        gt=0,
        description="How long it may be blocked before /health fails, so that a restart is tried.",
    )
    remote: bool = Field(
        default=False,
        description="Let other machines use the /debug routes of the operations port, not this one alone.",
    )
