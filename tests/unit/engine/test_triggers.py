"""Triggers: exactly one run for each firing, over crashes, jumps of the clock and daylight saving."""

import asyncio
import hmac
from datetime import UTC, datetime
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knhk.domain.errors import DefinitionNotFound, InvalidDescriptor, SignatureRefused, Unsupported
from knhk.domain.event import Submitted
from knhk.domain.times import rfc3339
from knhk.domain.triggers import Cron, next_times, times_between
from tests.simulation.clock import in_virtual_time
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

HOUR_NS = 3_600_000_000_000


def ns(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) * 1_000_000_000  # type: ignore[misc,arg-type]


def triggered(*triggers: Any, name: str = "nightly") -> bytes:
    inputs = {"at": {}, "data": {"default": None}}
    return workflow(step("a", params={"output": "${{ inputs.at }}"}), name=name, triggers=list(triggers), inputs=inputs)


def cron(expression: str, **rest: Any) -> dict[str, Any]:
    return {"name": "tick", "cron": expression, "inputs": {"at": "${{ trigger.time }}"}, **rest}


async def put(house: House, text: bytes) -> None:
    await house.engine.definitions.put(text, actor="anna")


def fired(house: House) -> list[str]:
    """The keys of the runs that triggers started, in the order of their ids."""
    details = [sealed[0].receipt().typed_detail() for _, sealed in sorted(house.store._state.receipts.items())]
    return [one.idempotency_key for one in details if isinstance(one, Submitted)]


def times(house: House) -> list[str]:
    return [key.rpartition("/")[2] for key in fired(house)]


async def test_a_schedule_fires_each_time_once(house: House) -> None:
    await put(house, triggered(cron("*/10 * * * *")))
    await asyncio.sleep(3605)
    assert len(times(house)) == 6
    assert times(house) == sorted(set(times(house)))
    ids = [one for one in house.store._state.receipts if house.kinds(one)[0] == "workflow.submitted"]
    assert (await house.control.results(ids[0]))[1] == {"a": times(house)[0]}
    shown = house.control.triggers.shown("nightly")
    assert shown[0]["next"][0] > times(house)[-1]
    await house.engine.definitions.retire("nightly", actor="anna")
    await asyncio.sleep(3600)
    assert len(times(house)) == 6


@pytest.mark.parametrize(("catch_up", "made_up"), [("none", 0), ("last", 1), ("all", 5)])
async def test_times_that_were_missed_are_made_up_for_as_the_policy_says(
    house: House, catch_up: str, made_up: int
) -> None:
    await put(house, triggered(cron("0 * * * *", catch_up=catch_up, max_catch_up=5)))
    await asyncio.sleep(3700)
    before = times(house)
    assert len(before) == 1
    await house.crash()
    await asyncio.sleep(8 * 3600)
    await house.start()
    await asyncio.sleep(120)
    assert len(times(house)) == 1 + made_up
    await house.restart()
    await asyncio.sleep(120)
    assert len(times(house)) == 1 + made_up
    assert len(set(times(house))) == len(times(house))
    if made_up == 5:
        assert times(house)[1:] == sorted(times(house)[1:])


async def test_a_new_version_goes_on_where_the_old_one_was(house: House) -> None:
    await put(house, triggered(cron("0 * * * *")))
    await asyncio.sleep(3700)
    await put(house, triggered(cron("*/30 * * * *")))
    await house.restart()
    await asyncio.sleep(60)
    assert len(times(house)) == 1
    await asyncio.sleep(3600)
    assert len(times(house)) == 3


SKIPPED = [("2026-03-28T01:30:00.000Z", "2026-03-29T01:00:00.000Z", "2026-03-30T00:30:00.000Z")]
REPEATED = [("2026-10-24T00:30:00.000Z", "2026-10-25T00:30:00.000Z", "2026-10-26T01:30:00.000Z")]


def test_daylight_saving_skips_and_repeats_no_firing() -> None:
    berlin = Cron("30 2 * * *", "Europe/Berlin")
    for expected, after in ((SKIPPED[0], ns(2026, 3, 28, 0, 0)), (REPEATED[0], ns(2026, 10, 24, 0, 0))):
        found = next_times(berlin, after, 3)
        assert tuple(map(rfc3339, found)) == expected
        assert times_between(berlin, after, found[-1], 10) == found
    hourly = Cron("0 * * * *", "Europe/Berlin")
    found = next_times(hourly, ns(2026, 10, 24, 22, 30), 6)
    assert [later - first for first, later in pairwise(found)] == [HOUR_NS] * 5


@settings(max_examples=60, deadline=None)
@given(
    expression=st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 0 1 * *", "15 1-3 * * 0", "0 12 * * 1-5"]),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    start=st.integers(ns(2026, 1, 1), ns(2027, 1, 1)),
    length=st.integers(0, 90 * 24 * HOUR_NS),
    most=st.integers(1, 20),
)
def test_times_between_are_the_last_of_the_next_times(
    expression: str, zone: str, start: int, length: int, most: int
) -> None:
    cron = Cron(expression, zone)
    forward = []
    after = start
    while (one := next_times(cron, after, 1)[0]) <= start + length and len(forward) < 5000:
        forward.append(one)
        after = one
    if len(forward) < 5000:
        assert times_between(cron, start, start + length, most) == forward[-most:]


async def test_a_webhook_is_signed_and_a_repeated_delivery_is_one_run(build: Any) -> None:
    house = await build(webhook_secrets={"KNHK_WEBHOOK_SHOP": "s3cret"})
    hook = {"name": "hook", "webhook": {"secret_env": "KNHK_WEBHOOK_SHOP"}}
    hook["inputs"] = {"at": "${{ trigger.id }}", "data": "${{ trigger.data }}"}
    other = {**hook, "name": "other", "webhook": {"secret_env": "KNHK_WEBHOOK_OTHER"}}
    await put(house, triggered(hook, other))
    body = b'{"order": 17}'
    signature = "sha256=" + hmac.new(b"s3cret", body, sha256).hexdigest()
    headers = {"x-hub-signature-256": signature, "x-github-delivery": "d-1"}
    first = await house.control.triggers.receive("nightly", "hook", headers, body)
    await house.restart()
    again = await house.control.triggers.receive("nightly", "hook", headers, body)
    assert (again.workflow_id, again.replayed) == (first.workflow_id, True)
    assert (await house.control.inspect(first.workflow_id))["inputs"]["data"] == {"order": 17}
    for bad in ({}, {"x-hub-signature-256": "sha256=00"}, {"x-hub-signature-256": "ä"}):
        with pytest.raises(SignatureRefused):
            await house.control.triggers.receive("nightly", "hook", bad, body)
    with pytest.raises(SignatureRefused):
        await house.control.triggers.receive("nightly", "hook", headers, body + b" ")
    with pytest.raises(Unsupported, match="KNHK_WEBHOOK_OTHER"):
        await house.control.triggers.receive("nightly", "other", headers, body)
    with pytest.raises(DefinitionNotFound):
        await house.control.triggers.receive("nightly", "nothing", headers, body)


async def test_an_event_starts_one_run_of_each_definition_that_waits_for_it(house: House) -> None:
    on = {"name": "on", "event": "paid", "inputs": {"at": "${{ trigger.correlate }}", "data": "${{ trigger.data }}"}}
    await put(house, triggered(on, name="one"))
    await put(house, triggered(on, name="two"))
    publish = {"event_id": "x", "keep_ns": 0, "actor": "bank"}
    done = await house.control.signals.publish("paid", "A-1", {"n": 1}, **publish)
    assert len(done.started) == 2
    await house.restart()
    await asyncio.sleep(5)
    assert (await house.control.signals.publish("paid", "A-1", {"n": 1}, **publish)).replayed
    assert len(fired(house)) == 2
    assert (await house.control.inspect(done.started[0]))["inputs"] == {"at": "A-1", "data": {"n": 1}}


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        (cron("61 * * * *"), "no cron schedule"),
        (cron("* * * * *", timezone="Mars/Base"), "no time zone"),
        ({"name": "x"}, "exactly one of"),
        ({"name": "x", "event": "e", "timezone": "UTC"}, "goes with `cron`"),
        ({"name": "x", "webhook": {"secret_env": "PATH"}}, "KNHK_WEBHOOK_"),
        ({"name": "x", "event": "e", "inputs": {"at": "${{ inputs.at }}"}}, "read `trigger`"),
    ],
)
async def test_a_trigger_that_cannot_be_is_refused(house: House, trigger: Any, message: str) -> None:
    with pytest.raises(InvalidDescriptor, match=message):
        await put(house, triggered(trigger))


@settings(max_examples=15, deadline=None)
@given(
    gaps=st.lists(st.tuples(st.integers(1, 5000), st.sampled_from([0, 30, 4000])), max_size=5),
    latency=st.sampled_from([0.0, 0.05]),
)
def test_every_time_fires_exactly_once_over_crashes(gaps: list[tuple[int, int]], latency: float) -> None:
    in_virtual_time(lambda: _life(gaps, latency))


async def _life(gaps: list[tuple[int, int]], latency: float) -> None:
    house = await House(latency_s=latency).start()
    await put(house, triggered(cron("*/5 * * * *", catch_up="all", max_catch_up=1000)))
    began = house.clock.now_ns()
    for up_s, down_s in gaps:
        await asyncio.sleep(up_s)
        await house.crash()
        await asyncio.sleep(down_s + 0.01)
        await house.start()
    await asyncio.sleep(400)
    expected = times_between(Cron("*/5 * * * *"), began, house.clock.now_ns() - 60 * 1_000_000_000, 10_000)
    found = times(house)
    assert len(found) == len(set(found))
    assert set(map(rfc3339, expected)) <= set(found)
    await house.engine.stop()
