"""The column families and the keys in them. All numbers are big-endian, so that keys sort as their numbers do.

receipts   partition 2 | workflow id 8 | first seq 4     msgpack array of Sealed: what one commit added to the run
payloads   the same                                      codec.py: the payloads beside those receipts, if any
blocks     partition 2 | height 8                        msgpack SignedBlock
timers     partition 2 | Unix time in ns 8 | workflow 8  empty
index      'c' | SHA-256 of an idempotency key           msgpack Claim
           'd' | descriptor digest                       the descriptor's bytes
           'l' | partition 2 | workflow id 8             empty: the run is live
runs       'c' | fold                                    height of the last block in the fold's rows, 8
           'r' | fold | 0 | key                          the row
keys       key id                                        msgpack PublicKey
meta       'format'                                      version of this layout, 2; see format_version.py
           'writer'                                      the KNHK version that gave the directory this format
           'ring'                                        which key ring encrypts the rows; see ring_binding.py
           'rewriting'                                   how far re-encryption is; see rewriting.py
           'retention'                                   the last time that retention believed, Unix time in ns, 8
           'p' | partition 2 | number 8                  what was pruned; see prune_records.py
           'e' | partition 2                             the partition's epoch, 8
"""

from struct import Struct
from typing import Final

from knhk.domain.identifier import partition_of

FORMAT_VERSION: Final = 2
FORMAT_KEY: Final = b"format"
WRITER_KEY: Final = b"writer"
RING_KEY: Final = b"ring"
REWRITING_KEY: Final = b"rewriting"
RETENTION_KEY: Final = b"retention"
FIRST_FAMILIES: Final = ("receipts", "blocks", "payloads", "runs", "index", "timers", "keys", "meta")
"""The column families of format 1: a directory that lacks one of them is not a whole store of any format."""
FAMILIES: Final = FIRST_FAMILIES

CLAIM: Final = b"c"
DESCRIPTOR: Final = b"d"
LIVE: Final = b"l"
CURSOR: Final = b"c"
ROW: Final = b"r"
EPOCH: Final = b"e"

RUN: Final = Struct(">HQI")
RUN_PREFIX: Final = Struct(">HQ")
BLOCK: Final = Struct(">HQ")
TIMER: Final = Struct(">HQQ")
PARTITION: Final = Struct(">H")
NUMBER: Final = Struct(">Q")
MAX_SEQ: Final = (1 << 32) - 1
MAX_NUMBER: Final = (1 << 64) - 1


def run_prefix(workflow_id: int) -> bytes:
    """What the keys of the run's receipts and payloads start with."""
    return RUN_PREFIX.pack(partition_of(workflow_id), workflow_id)


def run_key(workflow_id: int, seq: int) -> bytes:
    """The key of the slice that starts at `seq`."""
    return RUN.pack(partition_of(workflow_id), workflow_id, seq)


def block_key(partition: int, height: int) -> bytes:
    """The key of a block."""
    return BLOCK.pack(partition, height)


def timer_key(at_ns: int, workflow_id: int) -> bytes:
    """The key of a timer."""
    return TIMER.pack(partition_of(workflow_id), at_ns, workflow_id)


def live_key(workflow_id: int) -> bytes:
    """The key of the mark that a run is live."""
    return LIVE + run_prefix(workflow_id)


def epoch_key(partition: int) -> bytes:
    """The key of a partition's epoch."""
    return EPOCH + PARTITION.pack(partition)


def row_prefix(fold: str) -> bytes:
    """What the keys of a fold's rows start with; a zero byte ends the name, so no fold's name may contain one."""
    return ROW + fold.encode() + b"\x00"


def after(prefix: bytes) -> bytes:
    """The least key that is greater than all keys with the prefix, which must not consist of 0xff bytes alone."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1])
