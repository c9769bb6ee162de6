"""A restore drill: is what was backed up a journal that a server could go on with, and how long would it take?

Restores the newest backup and the segments after it into a scratch directory, verifies all of it, and folds a sample of
its runs, which is what a start does. Touches nothing but the scratch directory, and removes it.

    RTO   seconds from the beginning of the restore until everything is verified and the sample is folded
    RPO   seconds between the newest block of the live journal and the newest one that was restored, of the partition
          where that is most
"""

import asyncio
import random
import shutil
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from knhk.domain.errors import KnhkError
from knhk.domain.identifier import to_text
from knhk.domain.times import rfc3339
from knhk.persistence.partition_directories import FOLDER as PARTITIONS
from knhk.persistence.rocksdb import RocksDbStore
from knhk.recovery.recover import OpenStore, Recovered

Fold = Callable[[RocksDbStore, int], Coroutine[Any, Any, None]]
"""Folds one run of a store from its receipts. Raises KnhkError if that cannot be done."""


class Drill(msgspec.Struct):
    """What came of it; times in ns. `problems` are empty if and only if the backup is good."""

    source: str = ""
    rto_ns: int = 0
    rpo_ns: int = 0
    until_ns: int = 0
    receipts: int = 0
    workflows: int = 0
    folded: int = 0
    problems: list[str] = []

    def to_dict(self) -> dict[str, Any]:
        """As JSON-like data."""
        return {
            "ok": not self.problems,
            "source": self.source,
            "rto_seconds": round(self.rto_ns / 1e9, 3),
            "rpo_seconds": round(self.rpo_ns / 1e9, 3),
            "recovered_to": rfc3339(self.until_ns) if self.until_ns else None,
            "receipts": self.receipts,
            "workflows": self.workflows,
            "folded": self.folded,
            "problems": self.problems,
        }


def drill(
    scratch: Path,
    restore: Callable[[Path], Recovered],
    open_store: OpenStore,
    fold: Fold,
    *,
    live: Mapping[int, int],
    sample: int,
    rng: random.Random,
) -> Drill:
    """Restore into `scratch`, which must not exist, fold `sample` runs, and measure.

    `restore` puts what is backed up in the place of a directory; `live` is the time of the newest block of each
    partition of the live journal (Unix time in ns; none if it is not known). What fails is a problem of the result and
    not an exception.
    """
    done = Drill()
    began = perf_counter()
    try:
        scratch.mkdir(parents=True)
        recovered = restore(scratch / "data")
        done.source, done.until_ns = recovered.source, recovered.until_ns
        done.receipts, done.workflows = recovered.report.verified_count, recovered.report.workflows
        directories = [scratch / "data", *sorted((scratch / "data" / PARTITIONS).glob("[0-9]*"))]
        for directory in directories:
            store = open_store(directory)
            try:
                asyncio.run(_fold_sample(store, fold, -(-sample // len(directories)), rng, done))
            finally:
                asyncio.run(store.close())
        found = {head.partition: head.at_ns for head in recovered.heads}
        done.problems += [f"nothing of partition {one} came back" for one in sorted(live.keys() - found.keys())]
        done.rpo_ns = max((max(0, at_ns - found.get(one, at_ns)) for one, at_ns in live.items()), default=0)
    except (KnhkError, OSError) as error:
        done.problems.append(error.message if isinstance(error, KnhkError) else str(error))
    finally:
        done.rto_ns = round((perf_counter() - began) * 1e9)
        shutil.rmtree(scratch, ignore_errors=True)
    return done


async def _fold_sample(store: RocksDbStore, fold: Fold, sample: int, rng: random.Random, done: Drill) -> None:
    """Fold runs that are chosen at random, all with the same chance (reservoir sampling)."""
    chosen: list[int] = []
    for number, (workflow_id, _) in enumerate(store.scanner().scan_receipts()):
        if len(chosen) < sample:
            chosen.append(workflow_id)
        elif (place := rng.randrange(number + 1)) < sample:
            chosen[place] = workflow_id
    for workflow_id in chosen:
        try:
            await fold(store, workflow_id)
            done.folded += 1
        except KnhkError as error:
            done.problems.append(f"{to_text(workflow_id)} cannot be folded: {error.message}")
