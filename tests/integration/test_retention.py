"""Retention on a real store: what is old goes, and that is proven; everything else stays, whenever the process dies."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knhk.bootstrap.protection import ArchivePlace
from knhk.domain.errors import BackupCorrupt, DiskFull, WorkflowPruned
from knhk.domain.identifier import to_text
from knhk.domain.units import DAY
from knhk.engine.control import Submission
from knhk.persistence.journal_check import verify_workflow
from knhk.persistence.rocksdb_keys import RETENTION_KEY, run_key
from knhk.persistence.verification import Trust
from knhk.protection.archive import Archive, ArchiveReader, verify_archive
from knhk.protection.retention_clock import LONGEST_GAP_NS, RetentionClock
from knhk.security.signing import verify
from tests.integration.retaining import BIG, WAITING, House

EMBEDDED = pytest.mark.parametrize("house", ["rocksdb"], indirect=True)
"""What PostgreSQL does not do."""


async def test_what_is_old_goes_and_the_rest_verifies_and_says_what_went(house: House) -> None:
    node = await house.open()
    old = await house.run(60)
    waiting = (await node.engine.control.submit(Submission(WAITING))).workflow_id
    await house.settled()
    retention = house.retention()
    before = await house.report()
    done = await retention.run()
    assert done["workflows"] == 60
    assert done["row_bytes_gone"] > 60 * 500
    report = await house.report()
    assert report.valid, report.problems
    assert report.total_count + report.pruned == before.total_count
    assert report.verified_count == report.total_count == len(await node.store.receipts(waiting))
    assert "60 workflow(s)" in report.notes[0]
    assert await house.listed() == [to_text(waiting)]
    with pytest.raises(WorkflowPruned, match=to_text(old[0])):
        await node.engine.control.status(old[0])
    assert (await node.engine.control.status(waiting))["state"] == "running"
    assert await node.store.payload(old[0], 0, 0) is None
    young = await house.run(2)
    await house.settled()
    assert (await retention.run())["workflows"] == 2, "later, those are old too"
    assert (await house.report()).valid
    assert (await retention.status())["workflows_pruned"] == 62
    await house.close()
    node = await house.open()
    report = await house.report()
    assert report.valid, report.problems
    assert (await node.engine.control.status(waiting))["state"] == "running"
    with pytest.raises(WorkflowPruned):
        await node.engine.control.status(young[0])
    assert (await verify_workflow(node.store, waiting, Trust.of(await node.store.keys(), verify))).valid


@EMBEDDED
async def test_space_is_given_back(house: House) -> None:
    await house.open(compression=False)
    await house.run(300)
    await house.settled()
    house.node.store._database.flush()
    done = await house.retention().run()
    assert done["file_bytes_after"] < done["file_bytes_before"] / 5, done


async def test_nothing_young_and_nothing_that_has_not_ended_is_touched(house: House) -> None:
    node = await house.open()
    await house.run(3)
    paused = (await node.engine.control.submit(Submission(WAITING))).workflow_id
    await node.engine.control.pause(paused, actor="test")
    await house.settled()
    assert (await house.retention(ahead_ns=89 * DAY).run())["workflows"] == 0
    await node.engine.control.resume(paused, actor="test")
    await node.engine.control.cancel(paused, actor="test")
    await house.settled()
    retention = house.retention()
    retention._is_at_rest = lambda run: run != paused  # somebody is about to retry it
    assert (await retention.run())["workflows"] == 3
    assert (await node.engine.control.status(paused))["state"] == "cancelled"
    assert (await house.report()).valid


async def test_idempotency_keys_and_unused_descriptors_go_too(house: House) -> None:
    node = await house.open()
    (old,) = await house.run(name="only-once", idempotency_key="order-17")
    both = await house.run(2, name="in-use")
    digests = {run: (await node.store.receipts(run))[0].receipt().descriptor_digest for run in (old, both[0])}
    await house.settled()
    retention = house.retention()
    retention._is_at_rest = lambda run: run != both[1]
    done = await retention.run()
    swept = not house.url  # PostgreSQL keeps them: docs/retention.md
    assert (done["workflows"], done["descriptors"]) == (2, int(swept))
    assert (await node.store.descriptor(digests[old]) is None) == swept
    assert await node.store.descriptor(digests[both[0]]) is not None
    (new,) = await house.run(name="only-once", idempotency_key="order-17")
    assert new != old
    assert await node.store.descriptor(digests[old]) is not None
    report = await house.report()
    assert report.valid, report.problems


@EMBEDDED
async def test_a_descriptor_that_comes_back_while_it_is_looked_for_stays(house: House) -> None:
    node = await house.open()
    await house.run(name="again")
    await house.settled()
    retention = house.retention()
    sleep = retention._clock.sleep
    came_back = False

    async def meanwhile(seconds: float) -> None:
        nonlocal came_back
        if retention._store._recent_descriptors is not None and not came_back:
            came_back = True
            await house.run(name="again")
        await sleep(0)

    retention._clock.sleep = meanwhile  # type: ignore[method-assign]
    assert (await retention.run())["workflows"] == 1
    assert came_back
    report = await house.report()
    assert report.valid, report.problems
    assert len(await house.listed()) == 1
    await node.engine.control.inspect(int((await house.listed())[0][3:]))


@pytest.mark.parametrize("encryption", [False, True])
async def test_archived_runs_can_be_read_and_verified_without_the_store(house: House, encryption: bool) -> None:
    node = await house.open(encryption=encryption)
    runs = await house.run(5)
    await house.settled()
    assert (await house.retention(archive=True).run())["workflows"] == 5
    place = ArchivePlace(str(house.path / "archive"))
    (name,) = place.names()
    raw = place.read(name)
    assert (BIG.encode() in raw) is False
    archive = Archive.decode(raw, name)
    reader = ArchiveReader(archive, node.store.cipher)
    assert list(reader.runs()) == runs
    assert BIG.encode() in reader.payloads(runs[2])[0, 0]
    trust = Trust.of(await node.store.keys(), verify)
    report = await verify_archive(reader, trust)
    assert (report.valid, report.verified_count) == (True, report.total_count), report.problems
    assert "archived in" in (await house.report()).notes[0]
    untrusted = await verify_archive(reader, Trust.of([], verify))
    assert untrusted.signature_failures == 1
    for at in range(0, len(raw), max(1, len(raw) // 40)):
        damaged = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(BackupCorrupt, match=name):
            Archive.decode(damaged, name)
    cut = Archive(archive.signed, archive.keys, [row for row in archive.rows if row[1] != run_key(runs[1], 0)])
    assert not (await verify_archive(ArchiveReader(cut, node.store.cipher), trust)).valid


async def test_hashes_without_a_record_and_records_without_runs_are_found(house: House) -> None:
    node = await house.open()
    runs = await house.run(4)
    await house.settled()
    await house.retention().run()
    store = node.store
    record = await store.look(lambda database: next(iter(database.scan("meta", b"p", b"q"))))
    row = await store.look(lambda database: database.get("receipts", run_key(runs[1], 0)))
    await store.change(lambda _, changes: changes.delete("meta", record[0]))
    assert "no record says that it was pruned" in str((await house.report()).problems)
    await store.change(lambda _, changes: changes.put("meta", *record))
    assert (await house.report()).valid
    await store.change(lambda _, changes: changes.delete("receipts", run_key(runs[1], 0)))
    assert not (await house.report()).valid
    await store.change(lambda _, changes: changes.put("receipts", run_key(runs[1], 0), row))
    changed = record[1][:-1] + bytes([record[1][-1] ^ 1])
    await store.change(lambda _, changes: changes.put("meta", record[0], changed))
    assert (await house.report()).signature_failures == 1
    for at in range(0, len(row), 7 if house.url else 1):
        flipped = row[:at] + bytes([row[at] ^ 4]) + row[at + 1 :]
        await store.change(lambda _, changes, raw=flipped: changes.put("receipts", run_key(runs[1], 0), raw))
        found = await house.report()
        assert found.problem_count > 1, f"byte {at} of a row of hashes"


async def test_a_run_that_does_not_verify_is_kept_and_named(house: House) -> None:
    node = await house.open()
    runs = await house.run(3)
    await house.settled()
    key = run_key(runs[1], 0)
    row = await node.store.look(lambda database: database.get("receipts", key))
    changed = row.replace(b"workflow.submitted", b"workflow.submitteD")
    await node.store.change(lambda _, changes: changes.put("receipts", key, changed))
    retention = house.retention()
    assert (await retention.run())["workflows"] == 2
    assert to_text(runs[1]) in retention.health()
    assert await node.store.look(lambda database: database.get("receipts", key)) == changed


async def test_an_archive_that_cannot_be_written_keeps_everything(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.open()
    await house.run(3)
    await house.settled()
    retention = house.retention(archive=True)

    def full(*_: Any) -> None:
        raise DiskFull("no space left on the archive's disk")

    monkeypatch.setattr(ArchivePlace, "put", full)
    assert await retention._patiently(retention.run) < 60
    assert "no space left" in retention.health()
    assert len(await house.listed()) == 3
    monkeypatch.undo()
    await retention._patiently(retention.run)
    assert retention.health() == "ok"
    assert await house.listed() == []
    assert (await house.report()).valid


# -- The clock


async def test_a_clock_that_jumped_while_the_server_was_off_prunes_nothing_until_it_is_confirmed(house: House) -> None:
    await house.open()
    await house.run(3)
    await house.settled()
    retention = house.retention(ahead_ns=365 * DAY)
    await retention.believe()
    assert (await retention.run())["workflows"] == 0
    assert "knhk retention confirm" in retention.health()
    again = house.retention(ahead_ns=365 * DAY)  # a restart is no confirmation
    await again.believe()
    assert (await again.run())["workflows"] == 0
    again.confirm()
    assert again.health() == "ok"
    assert (await again.run())["workflows"] == 3
    later = house.retention(ahead_ns=366 * DAY)
    await later.believe()
    assert later.health() == "ok", "time goes on from what was confirmed"


def test_the_time_that_is_believed() -> None:
    start = 1_000 * DAY
    fresh = RetentionClock.start(start, 0)
    assert (fresh.is_held, fresh.now_ns(start + 5)) == (False, start + 5)
    week = RetentionClock.start(start, start - LONGEST_GAP_NS)
    assert not week.is_held
    jumped = RetentionClock.start(start, start - LONGEST_GAP_NS - 1)
    assert jumped.is_held
    assert jumped.now_ns(start + DAY) == start - LONGEST_GAP_NS - 1 + DAY
    assert "knhk retention confirm" in jumped.sentence()
    back = RetentionClock.start(start - 400 * DAY, start)
    assert (back.is_held, back.now_ns(start - 399 * DAY)) == (False, start - 399 * DAY)


# -- SIGKILL

PROGRAM = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.integration.retaining import House
from knhk.bootstrap.protection import ArchivePlace

async def main():
    house = House(Path(sys.argv[1]), sys.argv[4])
    store = type((await house.open()).store)
    left = int(sys.argv[3])
    def dying(original, before):
        async def call(self, *given, **named):
            nonlocal left
            if left == 0 and before:
                os.kill(os.getpid(), signal.SIGKILL)
            done = await original(self, *given, **named)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return done
        return call
    where = sys.argv[2]
    if where == "archived":
        put = ArchivePlace.put
        def dies(self, *given):
            nonlocal left
            put(self, *given)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        ArchivePlace.put = dies
    elif where == "compact":
        store.compact = dying(store.compact, True)
    else:
        store.change = dying(store.change, where == "before")
    await house.retention(archive=True).run()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("where", "count"), [("before", 0), ("after", 0), ("archived", 1), ("after", 1), ("compact", 0)]
)
async def test_a_process_killed_in_the_middle_leaves_each_run_whole_or_pruned_and_archived(
    house: House, tmp_path: Path, where: str, count: int
) -> None:
    node = await house.open()
    runs = await house.run(130)  # two pages
    await house.settled()
    await house.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[2])])}
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path), where, str(count), house.url]
    done = subprocess.run(arguments, timeout=90, env=environment, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    node = await house.open()
    report = await house.report()
    assert report.valid, report.problems
    kept = {run for run, sealed in node.store.scanner().scan_receipts() if sealed[0].has_body}
    assert set(map(to_text, kept)) == set(await house.listed())
    place = ArchivePlace(str(tmp_path / "archive"))
    for name in place.names():
        archived = ArchiveReader(Archive.decode(place.read(name), name), node.store.cipher)
        kept_or_archived = kept | set(archived.runs())
        kept |= kept_or_archived
    assert kept == set(runs), "none is lost"
    assert (await house.retention(archive=True).run())["workflows"] <= 130
    report = await house.report()
    assert report.valid, report.problems
    assert await house.listed() == []
    archived_runs: set[int] = set()
    trust = Trust.of(await node.store.keys(), verify)
    for name in place.names():
        reader = ArchiveReader(Archive.decode(place.read(name), name), node.store.cipher)
        assert (await verify_archive(reader, trust)).valid
        archived_runs |= set(reader.runs())
    assert archived_runs == set(runs)


async def test_retention_works_by_itself_and_stops(house: House) -> None:
    node = await house.open()
    await house.run(2)
    await house.settled()
    raw = (node.clock.now_ns() + 99 * DAY).to_bytes(8)
    await node.store.change(lambda _, changes: changes.put("meta", RETENTION_KEY, raw))
    retention = house.retention()
    await retention.start()
    listed: Callable[[], Any] = house.listed
    async with asyncio.timeout(30):
        while await listed():
            await asyncio.sleep(0.02)
    await retention.stop()
    assert retention.health() == "ok"
