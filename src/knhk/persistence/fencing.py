"""The rule that every store applies before it writes a commit: the present owner, and the next block."""

import msgspec

from knhk.domain.errors import Fenced
from knhk.domain.receipt import NO_HASH
from knhk.ports.append import Commit


class Tip(msgspec.Struct, frozen=True):
    """The newest block of a partition as far as the next one depends on it."""

    height: int
    hash: bytes


def refuse_unless_next(commit: Commit, present_epoch: int, tip: Tip | None) -> None:
    """Raise Fenced unless the commit is of the present owner and continues the partition's chain of blocks."""
    block = commit.block
    if block.epoch != present_epoch:
        raise Fenced(
            f"partition {block.partition}: epoch {block.epoch} may not append, the present one is {present_epoch}"
        )
    expected = 0 if tip is None else tip.height + 1
    if block.height != expected:
        raise Fenced(f"partition {block.partition}: block {block.height} was appended where {expected} is next")
    if block.previous_block_hash != (NO_HASH if tip is None else tip.hash):
        raise Fenced(f"partition {block.partition}: block {block.height} does not follow the journal's newest block")
