"""Workflow ids: `wf-` and a decimal 64-bit snowflake, sortable by time, with the owner partition inside.

41 bits milliseconds since EPOCH_MS | 10 bits partition | 12 bits sequence
"""

import re
from typing import Final

from knhk.domain.errors import WorkflowNotFound

EPOCH_MS: Final = 1_735_689_600_000  # 2025-01-01T00:00:00Z
PARTITION_BITS: Final = 10
SEQUENCE_BITS: Final = 12
MAX_SEQUENCE: Final = (1 << SEQUENCE_BITS) - 1
_PATTERN = re.compile(r"wf-([0-9]{1,19})")


def compose(at_ms: int, partition: int, sequence: int) -> int:
    """The id of the `sequence`-th workflow of a partition in a millisecond (Unix time)."""
    return ((at_ms - EPOCH_MS) << (PARTITION_BITS + SEQUENCE_BITS)) | (partition << SEQUENCE_BITS) | sequence


def partition_of(workflow_id: int) -> int:
    """The partition that owns the workflow."""
    return (workflow_id >> SEQUENCE_BITS) & ((1 << PARTITION_BITS) - 1)


def at_ms(workflow_id: int) -> int:
    """When the id was made: Unix time in milliseconds."""
    return (workflow_id >> (PARTITION_BITS + SEQUENCE_BITS)) + EPOCH_MS


def to_text(workflow_id: int) -> str:
    """The id as people see it."""
    return f"wf-{workflow_id}"


def parse(text: str) -> int:
    """The number of an id. Raises WorkflowNotFound if the text is no id: nothing can have that name."""
    match = _PATTERN.fullmatch(text)
    if match is None or (number := int(match[1])) >= 1 << 63:
        raise WorkflowNotFound(f"{text[:80]!r} is not a workflow id; they look like wf-1234567890")
    return number
