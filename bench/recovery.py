"""How long it takes to come back: `python -m bench.recovery`. Writes a journal, ships it, loses it, restores it.

Prints RTO (from the beginning of the restore until everything is verified) of the newest backup with the segments after
it, and of the segments alone, and RPO (what was committed and had not arrived when the machine was lost).
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from knhk.bootstrap import Node
from knhk.bootstrap.recovery import NodeRecovery
from knhk.bootstrap.stores import open_store, store_options
from knhk.config import Config, Persistence, Recovery
from knhk.engine.control import Submission
from knhk.persistence.rocksdb import RocksDbStore
from knhk.recovery import backups, restore
from knhk.recovery.places import Place
from knhk.recovery.recover import Part, Recovered, Segments, recover
from knhk.security.signing import verify

AT_ONCE = 256
BACKUP = "20260101_000000"
DESCRIPTOR = b"""\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: recovery-bench, department: bench}
spec:
  inputs: {number: {type: integer}}
  steps:
    - {name: first, action: process, params: {output: {number: "${{ inputs.number }}"}}}
    - {name: second, action: process, depends_on: [first], params: {output: "${{ steps.first.output }}"}}
"""


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _ignore(_stage: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""


async def _write(config: Config, place: Place, receipts: int) -> float:
    """A journal of so many receipts, a backup after three quarters; the lag of shipping at the end in seconds."""
    node = Node(config)
    recovery = NodeRecovery(node)
    assert recovery.shipper is not None
    await node.start()
    await recovery.shipper.start()
    done = number = 0
    backed_up = False
    while done < receipts:
        batch = [Submission(DESCRIPTOR, {"number": number + one}) for one in range(AT_ONCE)]
        number += AT_ONCE
        await asyncio.gather(*[node.engine.control.submit(one, wait_s=60.0) for one in batch])
        done = node.engine.committer.statistics.receipts
        if not backed_up and done >= receipts * 3 // 4:
            snapshot = await recovery.snapshots.take()
            await asyncio.to_thread(backups.create, snapshot.path, place, BACKUP, _ignore)
            backed_up = True
    _say(f"{done} receipts of {number} runs are committed")
    lag_s = recovery.shipper.lag_ns() / 1e9
    await recovery.shipper.stop()
    await node.stop()
    return lag_s


def _restore(config: Config, source: str | None, place: Place) -> tuple[float, Recovered]:
    shutil.rmtree(config.persistence.path)

    def opened(path: Path) -> RocksDbStore:
        persistence = config.persistence.model_copy(update={"path": path})
        store = open_store(config.model_copy(update={"persistence": persistence}), read_only=True)
        assert isinstance(store, RocksDbStore)
        return store

    began = time.perf_counter()
    base = None if source is None else restore.find(source, None, verify)
    recovered = recover(
        config.persistence.path,
        [Part("", base, (Segments(place, 0, store_options(config.persistence)),))],
        pinned=None,
        check=verify,
        open_store=opened,
        now_ns=time.time_ns(),
        progress=_ignore,
    )
    return time.perf_counter() - began, recovered


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _measure(directory: Path, to: str, receipts: int) -> list[dict[str, Any]]:
    config = Config(
        persistence=Persistence(path=directory / "data", key_path=directory / "keys"),
        recovery=Recovery(checkpoint_path=directory / "checkpoints", backup_to=to),
    )
    place = Place.of(to, make=True)
    began = time.perf_counter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        lag_s = runner.run(_write(config, place, receipts))
    _say(f"written in {time.perf_counter() - began:.0f} s; {_size(config.persistence.path) >> 20} MiB of data")
    rows = []
    for name, source in (("backup and segments", f"{place}/{BACKUP}"), ("segments alone", None)):
        seconds, recovered = _restore(config, source, place)
        report = recovered.report
        assert report.valid
        assert report.verified_count == report.total_count
        rows.append(
            {
                "restored from": name,
                "receipts": report.verified_count,
                "runs": report.workflows,
                "segments": recovered.replayed.segments if recovered.replayed else 0,
                "RTO s": round(seconds, 1),
                "receipts/s": round(report.verified_count / seconds),
                "lag when lost s": round(lag_s, 2),
            }
        )
        _say(str(rows[-1]))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument("--receipts", type=int, default=1_000_000, help="size of the journal (1000000)")
    parser.add_argument("--to", help="where to ship, a directory or URL; by default a directory beside the data")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the data go: a real disk (/var/tmp)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="knhk-recovery-", dir=given.dir) as directory:
        rows = _measure(Path(directory), given.to or f"{directory}/away", given.receipts)
    for name in rows[0]:
        print(f"{name:>22}  " + "  ".join(f"{row[name]!s:>20}" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
