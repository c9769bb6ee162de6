"""Restoring a partition from what another node has shipped: `python -m knhk.bootstrap.takeover`, a process of its own.

It verifies every receipt, which takes a processor for as long as that takes; the node that started it must renew its
lease meanwhile. The partition's configuration comes on stdin, from that node and from nobody else; the result is JSON.
"""

import asyncio
import ctypes
import json
import pickle
import signal
import sys
import time
from typing import Any, Final

import msgspec

from knhk.bootstrap.stores import store_options
from knhk.config import Config
from knhk.domain.errors import BackupCorrupt, BackupUnavailable, KnhkError
from knhk.persistence.rocksdb import RocksDbStore
from knhk.recovery.places import Place
from knhk.recovery.recover import Part, Segments, recover
from knhk.security.signing import verify

_PR_SET_PDEATHSIG: Final = 1
_MOST_TEXT: Final = 500


class Restored(msgspec.Struct, frozen=True):
    """What was restored: the journal's last block (-1: there is none), how many receipts, and up to which time.

    `missing` is what the directory had that was there before, and `kept` where that is now.
    """

    height: int
    receipts: int
    recovered_to: str | None
    missing: list[str]
    kept: str | None


async def restored(config: Config) -> Restored:
    """Restore the partition of this configuration in another process. Raises BackupUnavailable, BackupCorrupt."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "knhk.bootstrap.takeover"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, said = await process.communicate(pickle.dumps(config))
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError as error:
        text = said.decode(errors="replace").strip()[-_MOST_TEXT:]
        raise BackupUnavailable(f"restoring ended with {process.returncode}: {text}") from error
    if "failure" in answer:
        kind = BackupCorrupt if answer["corrupt"] else BackupUnavailable
        raise kind(f"what was shipped cannot be restored: {answer['failure']}", hint=answer["hint"])
    return msgspec.convert(answer, Restored)


def restore_partition(config: Config) -> Restored:
    """All that was shipped to the partition's place, instead of what is in its directory, which is kept beside it.

    Raises what recover does.
    """
    place = Place.of(config.recovery.backup_to, make=True)
    recovered = recover(
        config.persistence.path,
        [Part("", None, (Segments(place, 0, store_options(config.persistence)),))],
        pinned=None,
        check=verify,
        open_store=lambda path: RocksDbStore.open(path, read_only=True),
        now_ns=time.time_ns(),
        progress=lambda *_: None,
    )
    shown = recovered.to_dict()
    head = recovered.heads[0] if recovered.heads else None
    return Restored(
        -1 if head is None else head.height,
        0 if head is None else head.receipts,
        shown["recovered_to"],
        recovered.missing,
        shown["old_data"],
    )


def main() -> None:
    """Restore what stdin says, and say what came of it."""
    config = pickle.load(sys.stdin.buffer)  # written by the node
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        told = msgspec.json.encode(restore_partition(config))
    except KnhkError as error:
        failure = {"failure": error.message, "hint": error.advice, "corrupt": isinstance(error, BackupCorrupt)}
        told = msgspec.json.encode(failure)
    sys.stdout.buffer.write(told)


if __name__ == "__main__":
    main()
