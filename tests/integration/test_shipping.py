"""Continuous shipping and its way back, on real stores and a real S3 server that also misbehaves."""

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from knhk.domain.errors import BackupCorrupt, EncryptionKeyUnavailable, IdempotencyConflict
from knhk.ports.journal import record_key
from knhk.recovery import segments
from knhk.recovery.places import Place
from tests.integration.recovering import HELLO, NAPS, House, until
from tests.services.faulty_s3 import FaultyS3
from tests.services.s3 import S3


@pytest.fixture
async def house(tmp_path: Path) -> House:
    """A node that ships to a directory."""
    return await House(tmp_path / "one", str(tmp_path / "away")).start()


@pytest.fixture
def faulty(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with FaultyS3(s3) as proxy:
        for name, value in proxy.variables.items():
            monkeypatch.setenv(name, value)
        yield proxy


PARENT = b"""\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: parent}
spec:
  steps:
    - {name: child, action: workflow, params: {name: hello, input: {number: 1}}}
"""


def away(house: House) -> Place:
    return Place.of(house.config.recovery.backup_to)


def segment_names(house: House) -> list[str]:
    return sorted(one.name for one in away(house).entries("segments") if one.name.endswith(".seg"))


async def test_nothing_that_was_acknowledged_and_shipped_is_lost(house: House) -> None:
    await house.run(5)
    snapshot = await house.recovery.snapshots.take()
    kept = house.directory.parent / "kept"
    snapshot.path.rename(kept)
    await house.run(5)
    (napping,) = await house.run(1, NAPS, idempotency_key="order-17")
    await house.shipped()
    await house.crash()
    house.lose()

    done = await house.restore(str(kept), house.config.recovery.backup_to)
    assert done.report.valid
    assert done.report.verified_count == done.report.total_count == done.heads[0].receipts
    assert done.replayed is not None
    assert done.replayed.blocks > 0
    await house.start()
    states = await house.states()
    assert [states[one] for one in house.submitted] == ["completed"] * 10 + ["running"]
    again = await house.run(1, NAPS, idempotency_key="order-17")
    assert again == [napping]  # the claim came along
    with pytest.raises(IdempotencyConflict):
        await house.run(1, HELLO, idempotency_key="order-17")
    await house.run(2)
    await house.shipped()
    assert len(away(house).folders("segments")) == 1  # the same line of events goes on
    await house.stop()


async def test_definitions_come_along_with_all_their_versions(house: House) -> None:
    definitions = house.node.engine.definitions
    await definitions.put(HELLO, actor="ada")
    await house.shipped()
    await definitions.put(HELLO.replace(b"second", b"other"), actor="ada")
    await house.shipped()
    await house.crash()
    house.lose()
    assert (await house.restore(place=house.config.recovery.backup_to)).report.valid
    await house.start()
    assert house.node.engine.corrupt == {}
    found = await house.node.engine.definitions.get("hello")
    assert [version.number for version in found.versions] == [1, 2]
    assert b"other" in await house.node.engine.definitions.text(found.versions[1])
    assert [row.name for row in (await house.node.engine.definitions.listing(after=None, limit=9))[0]] == ["hello"]
    await house.stop()


def waits_for(order: str) -> bytes:
    return f"""\
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: waits}}
spec:
  timeout: 2h
  steps:
    - {{name: payment, action: wait_for, params: {{event: paid, correlate: {order}}}}}
""".encode()


async def test_events_that_are_kept_and_runs_that_wait_come_along(house: House) -> None:
    hour_ns = 3600 * 10**9
    await house.run(1, waits_for("order-1"))
    signals = house.node.engine.signals
    await signals.publish("paid", "order-2", {}, event_id="e2", keep_ns=hour_ns, actor="shop")
    await house.shipped()
    await house.crash()
    house.lose()
    assert (await house.restore(place=house.config.recovery.backup_to)).report.valid
    await house.start()
    assert house.node.engine.corrupt == {}
    signals = house.node.engine.signals
    again = await signals.publish("paid", "order-2", {}, event_id="e2", keep_ns=hour_ns, actor="shop")
    assert again.event_id == "e2"
    await signals.publish("paid", "order-1", {}, event_id="e1", keep_ns=0, actor="shop")
    (other,) = await house.run(1, waits_for("order-2"))
    async with asyncio.timeout(60):
        while set((await house.states()).values()) != {"completed"}:
            await asyncio.sleep(0.02)
    assert (await house.node.engine.control.inspect(other))["steps"][0]["output"]["correlate"] == "order-2"
    await house.stop()


async def test_a_child_is_still_the_child_of_its_step(house: House) -> None:
    await house.node.engine.definitions.put(HELLO, actor="ada")
    (parent,) = await house.run(1, PARENT)
    async with asyncio.timeout(60):
        while set((await house.states()).values()) != {"completed"}:
            await asyncio.sleep(0.02)
    await house.shipped()
    key = record_key("child", f"wf-{parent}/child/1")
    before = await house.node.store.claim(key)
    assert before is not None
    await house.crash()
    house.lose()
    assert (await house.restore(place=house.config.recovery.backup_to)).report.valid
    await house.start()
    assert await house.node.store.claim(key) == before
    await house.stop()


async def test_the_segments_alone_are_enough(house: House) -> None:
    await house.run(6)
    await house.shipped()
    await house.crash()
    house.lose()
    done = await house.restore(place=house.config.recovery.backup_to)
    assert done.report.valid
    assert done.report.workflows == 6
    await house.start()
    assert set((await house.states()).values()) == {"completed"}
    await house.stop()


async def test_a_point_in_time_and_the_line_of_events_that_begins_there(house: House) -> None:
    first = await house.run(3)
    await house.shipped()
    between_ns = time.time_ns()
    await asyncio.sleep(0.01)
    later = await house.run(3)
    await house.shipped()
    await house.stop()

    done = await house.restore(place=house.config.recovery.backup_to, to_ns=between_ns)
    assert done.replayed is not None
    assert done.replayed.left_out > 0
    assert any("younger" in one for one in done.missing)
    assert any("which the old data had" in one for one in done.missing)
    assert 0 < done.until_ns <= between_ns
    house.submitted = first.copy()
    await house.start()
    assert set((await house.states()).values()) == {"completed"}
    other = await house.run(4)
    await house.shipped()
    await house.stop()
    assert len(away(house).folders("segments")) == 2

    # The newest line of events has the first and the other runs, the older one the later ones.
    house.lose()
    done = await house.restore(place=house.config.recovery.backup_to)
    await house.start()
    house.submitted = first + other
    assert set((await house.states()).values()) == {"completed"}
    for name in later:
        assert await house.node.store.receipts(name) == []
    await house.stop()


async def test_shipping_goes_on_after_a_crash_at_any_point(house: House) -> None:
    """Crashes between the arrival of a segment and the cursor, by taking the cursor back."""
    for _ in range(3):
        await house.run(2)
        await house.shipped()
        shipper = house.recovery.shipper
        assert shipper is not None
        shipper.cursor -= 1
        await shipper._remember()
        await house.crash()
        await house.start()
        await house.shipped()
    heights = [segments.heights_of(one) for one in segment_names(house)]
    covered = [height for one in heights if one for height in range(one[0], one[1] + 1)]
    assert covered == list(range(len(covered)))  # each block once, since what had arrived was found
    await house.stop()
    house.lose()
    assert (await house.restore(place=house.config.recovery.backup_to)).report.workflows == 6


async def test_a_lost_place_is_filled_again_from_the_first_block(house: House) -> None:
    await house.run(3)
    await house.shipped()
    await house.stop()
    for name in [one.name for one in away(house).entries()]:
        away(house).delete([name])
    await house.start()
    await house.run(1)
    await house.shipped()
    await house.stop()
    house.lose()
    assert (await house.restore(place=house.config.recovery.backup_to)).report.workflows == 4


async def test_erased_payloads_do_not_come_back(house: House) -> None:
    names = await house.run(3)
    await house.shipped()
    await house.node.engine.control.erase(names[1], actor="operator", reason="asked")
    await house.shipped()
    await house.crash()
    house.lose()
    assert (await house.restore(place=house.config.recovery.backup_to)).report.valid
    await house.start()
    assert (await house.node.engine.control.inspect(names[1]))["erased"] is True
    assert await house.node.store.payload(names[1], 0, 0) is None
    assert await house.node.store.payload(names[0], 0, 0) is not None
    await house.stop()


async def test_what_is_encrypted_stays_so_on_its_way(tmp_path: Path) -> None:
    house = await House(tmp_path / "one", str(tmp_path / "away"), encryption=True).start()
    await house.run(3)
    await house.shipped()
    await house.crash()
    for name in segment_names(house):
        _, body = segments.decode(away(house).read(name), name, None, lambda *_: True)
        rows = b"".join(row for block in body.blocks for row in (*block.receipts, *block.payloads))
        assert b"and more to store" not in rows
        assert b"hello" not in rows
    house.lose()
    assert (await house.restore(place=house.config.recovery.backup_to)).report.verified_count > 0
    await house.start()
    assert set((await house.states()).values()) == {"completed"}
    await house.stop()

    (house.directory / "keys").rename(house.directory / "keys-elsewhere")
    with pytest.raises(EncryptionKeyUnavailable):
        await house.start()


async def test_a_flipped_bit_anywhere_in_a_segment_is_found_and_named(house: House) -> None:
    await house.run(4)
    await house.shipped()
    await house.stop()
    rng = random.Random(3)
    before = sorted(path.name for path in house.data.iterdir())
    for name in segment_names(house):
        raw = away(house).read(name)
        for _ in range(2):  # more of them: test_flipped_bits.py
            damaged = bytearray(raw)
            damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            away(house).put(name, bytes(damaged))
            with pytest.raises(BackupCorrupt, match=name):
                await house.restore(place=house.config.recovery.backup_to)
        away(house).put(name, raw[:-7])
        with pytest.raises(BackupCorrupt, match=name):
            await house.restore(place=house.config.recovery.backup_to)
        away(house).put(name, raw)
    assert sorted(path.name for path in house.data.iterdir()) == before
    assert (await house.restore(place=house.config.recovery.backup_to)).report.valid


async def test_a_missing_segment_is_a_gap_and_not_passed_over(house: House) -> None:
    for _ in range(4):
        await house.run(1)
        await house.shipped()
    await house.stop()
    gone = segment_names(house)[2]
    away(house).delete([gone])
    heights = segments.heights_of(gone)
    assert heights is not None
    with pytest.raises(BackupCorrupt, match=f"does not follow block {heights[0] - 1}"):
        await house.restore(place=house.config.recovery.backup_to)


async def test_only_segments_of_pinned_keys_are_taken(house: House, tmp_path: Path) -> None:
    await house.run(2)
    await house.shipped()
    await house.stop()
    mine = house.node.signer.public_key
    assert (await house.restore(place=house.config.recovery.backup_to, pinned=[mine])).report.valid
    stranger = await House(tmp_path / "two", "").start()
    await stranger.stop()
    with pytest.raises(BackupCorrupt, match="not among those that are trusted"):
        await house.restore(place=house.config.recovery.backup_to, pinned=[stranger.node.signer.public_key])


@pytest.mark.parametrize("mode", ["error", "lie", "half", "truncate", "flip"])
async def test_s3_that_fails_or_lies_costs_lag_and_nothing_else(faulty: FaultyS3, tmp_path: Path, mode: str) -> None:
    house = await House(tmp_path / "one", f"s3://shipping-{mode}").start()
    shipper = house.recovery.shipper
    assert shipper is not None
    await house.run(2)
    await house.shipped()
    arrived = shipper.cursor
    faulty.mode = mode
    await house.run(3)  # runs do not notice
    await until(lambda: shipper.failures_total >= 1)
    assert shipper.cursor == arrived
    assert shipper.lag_ns() > 0
    shipper._longest_lag_ns = 1
    assert "behind" in shipper.health()
    assert shipper.figures()["ship_lag_seconds"] > 0
    faulty.mode = ""
    await house.shipped()
    assert shipper.health() == "ok"
    await house.crash()
    house.lose()
    assert (await house.restore(place=house.config.recovery.backup_to)).report.workflows == 5


@pytest.mark.parametrize("mode", ["lie", "half"])
async def test_s3_that_lies_from_the_first_moment_has_no_history_of_which_nothing_is_there(
    faulty: FaultyS3, tmp_path: Path, mode: str
) -> None:
    """Without the document of its history, all that is shipped after it would not be found."""
    faulty.mode = mode
    house = await House(tmp_path / "one", f"s3://history-{mode}").start()
    shipper = house.recovery.shipper
    assert shipper is not None
    await house.run(2)
    await until(lambda: shipper.failures_total >= 1)
    assert shipper.segments_total == 0
    faulty.mode = ""
    await house.shipped()
    await house.crash()
    house.lose()
    assert (await house.restore(place=house.config.recovery.backup_to)).report.workflows == 2


async def test_a_segment_that_a_crash_left_half_there_is_shipped_again(house: House) -> None:
    await house.run(2)
    await house.shipped()
    shipper = house.recovery.shipper
    assert shipper is not None
    last = segment_names(house)[-1]
    heights = segments.heights_of(last)
    assert heights is not None
    shipper.cursor = heights[0] - 1
    await shipper._remember()
    await house.crash()
    away(house).put(last, away(house).read(last)[:100])
    await house.start()
    await house.run(1)
    await house.shipped()
    await house.stop()
    house.lose()
    assert (await house.restore(place=house.config.recovery.backup_to)).report.workflows == 3


async def test_slow_s3_is_behind_and_catches_up_in_bigger_segments(faulty: FaultyS3, tmp_path: Path) -> None:
    house = await House(tmp_path / "one", "s3://shipping-slow").start()
    await house.run(1)
    await house.shipped()
    faulty.mode, faulty.delay_s = "slow", 0.4
    await house.run(30)
    await house.shipped()
    widest = max(last - first for first, last in map(segments.heights_of, segment_names(house)))  # type: ignore[misc]
    assert widest > 1
    await house.stop()


async def test_a_place_that_is_not_there_yet_does_not_keep_the_server_from_starting(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    house = await House(tmp_path / "one", "s3://shipping-later").start()
    shipper = house.recovery.shipper
    assert shipper is not None
    await house.run(1)
    await until(lambda: shipper.failures_total >= 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    await house.shipped()
    await house.stop()
