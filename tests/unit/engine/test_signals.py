"""Signals, approvals, events: none lost, none twice, whatever the order, over crashes too; waiting costs no memory."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knhk.domain.errors import IllegalTransition, InvalidParameter, StorageUnavailable
from knhk.domain.run import RunState
from knhk.engine.control import Filter
from knhk.engine.signals import Apart, Published
from knhk.engine.topic_rows import KeptEvent
from tests.simulation.clock import in_virtual_time
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

HOUR_NS = 3_600_000_000_000


def waits(correlate: str = "", *, before: list[Any] | None = None, timeout: str | None = None) -> bytes:
    params = {"event": "paid", **({"correlate": correlate} if correlate else {})}
    params |= {"timeout": timeout} if timeout else {}
    first = before or []
    wait = step("pay", "wait_for", [one["name"] for one in first], params=params)
    ship = step("ship", "effect", ["pay"], params={"gives": "${{ steps.pay.output.data }}"})
    return workflow(*first, wait, ship, timeout="100h", outputs={"paid": "${{ steps.pay.output.data }}"})


def asks(**params: Any) -> bytes:
    return workflow(step("ask", "approval", params=params), step("b", after=["ask"]), timeout="100h")


async def paid(house: House, workflow_id: int) -> Any:
    assert (await house.ended(workflow_id)).state is RunState.COMPLETED
    return (await house.control.results(workflow_id))[1]["paid"]


async def test_a_run_parks_until_its_signal_comes_and_says_what_it_waits_for(house: House) -> None:
    accepted = await house.submit(waits(timeout="20h"))
    assert not house.engine.scheduler.active
    assert house.store._state.live == set()
    shown = (await house.control.status(accepted.workflow_id))["waiting_on"]
    assert [(one["kind"], one["step"], one["event"]) for one in shown] == [("event", "pay", "paid")]
    assert shown[0]["since"] < shown[0]["until"]
    await asyncio.sleep(3600)
    await house.restart()
    done = await house.control.signals.signal(accepted.workflow_id, "paid", 7, actor="shop")
    assert done.step == "pay"
    assert await paid(house, accepted.workflow_id) == 7
    kinds = house.kinds(accepted.workflow_id)
    assert (kinds.count("step.waiting"), kinds.count("signal.received")) == (1, 1)
    assert (await house.verify()).valid
    await asyncio.sleep(40)
    assert house.leaks() == {}


async def test_a_signal_that_comes_early_is_kept_for_the_step_that_waits_later(house: House) -> None:
    nap = step("nap", "wait", params={"duration": "1h"})
    accepted = await house.submit(waits(before=[nap]))
    done = await house.control.signals.signal(accepted.workflow_id, "paid", {"n": 1}, actor="shop")
    assert done.step == ""
    await house.restart()
    assert await paid(house, accepted.workflow_id) == {"n": 1}


async def test_the_same_signal_twice_is_one(house: House) -> None:
    nap = step("nap", "wait", params={"duration": "1h"})
    accepted = await house.submit(waits(before=[nap]))
    for expected in (False, True):
        done = await house.control.signals.signal(accepted.workflow_id, "paid", 1, signal_id="a", actor="shop")
        assert done.replayed is expected
        await house.restart()
    assert house.kinds(accepted.workflow_id).count("signal.received") == 1
    assert await paid(house, accepted.workflow_id) == 1


async def test_nobody_in_time_fails_the_step(house: House) -> None:
    accepted = await house.submit(waits(timeout="2h"))
    await asyncio.sleep(3600)
    await house.restart()
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.FAILED
    assert run.failure is not None
    assert run.failure.code == "KNHK-EVENT-TIMEOUT"
    assert asyncio.get_running_loop().time() == pytest.approx(7200, abs=1)
    with pytest.raises(IllegalTransition):
        await house.control.signals.signal(accepted.workflow_id, "paid", 1, actor="shop")
    await asyncio.sleep(40)
    assert house.leaks() == {}


async def test_a_paused_run_takes_its_signal_when_it_goes_on(house: House) -> None:
    accepted = await house.submit(waits())
    await house.control.pause(accepted.workflow_id, actor="anna")
    await house.control.signals.signal(accepted.workflow_id, "paid", 1, actor="shop")
    assert (await house.control.status(accepted.workflow_id))["waiting_on"][0]["kind"] == "paused"
    await house.restart()
    await house.control.resume(accepted.workflow_id, actor="anna")
    assert await paid(house, accepted.workflow_id) == 1


async def test_an_event_reaches_all_that_wait_with_its_correlation_and_no_other(house: House) -> None:
    ids = {one: (await house.submit(waits(f"order-{one % 3}"))).workflow_id for one in range(9)}
    await asyncio.sleep(1)
    assert not house.engine.scheduler.active
    done = await house.control.signals.publish("paid", "order-1", 5, event_id="x", keep_ns=HOUR_NS, actor="bank")
    assert sorted(done.delivered_to) == sorted(ids[one] for one in (1, 4, 7))
    for one in (1, 4, 7):
        assert await paid(house, ids[one]) == 5
    assert (await house.fold(ids[0])).state is RunState.RUNNING
    again = await house.control.signals.publish("paid", "order-1", 5, event_id="x", keep_ns=HOUR_NS, actor="bank")
    assert again.replayed
    assert again.record_id == done.record_id
    assert (await house.verify()).valid


async def test_an_event_that_comes_before_anybody_waits_is_kept_for_its_time(house: House) -> None:
    await house.control.signals.publish("paid", "order-1", 5, keep_ns=HOUR_NS, actor="bank")
    await house.restart()
    early = await house.submit(waits("order-1"))
    assert await paid(house, early.workflow_id) == 5
    await asyncio.sleep(3700)
    late = await house.submit(waits("order-1"))
    await asyncio.sleep(60)
    assert (await house.fold(late.workflow_id)).state is RunState.RUNNING


async def test_an_event_needs_to_say_whom_it_is_for(house: House) -> None:
    with pytest.raises(InvalidParameter, match="correlate"):
        await house.control.signals.publish("paid", "", 5, keep_ns=0, actor="bank")


async def test_enough_people_must_approve(house: House) -> None:
    accepted = await house.submit(asks(approvers=["anna", "ben", "cleo"], required=2, message="Ship it?"))
    name = accepted.workflow_id
    with pytest.raises(IllegalTransition, match="'dave' may not"):
        await house.control.signals.judge(name, "ask", True, approver="dave", actor="dave")
    for _ in range(2):
        await house.control.signals.judge(name, "", True, approver="anna", actor="anna")
        await house.restart()
    shown = (await house.control.status(name))["waiting_on"][0]
    assert (shown["kind"], shown["given_by"], shown["required"], shown["message"]) == (
        "approval",
        ["anna"],
        2,
        "Ship it?",
    )
    with pytest.raises(IllegalTransition, match="already approved"):
        await house.control.signals.judge(name, "ask", False, approver="anna", actor="anna")
    await house.control.signals.judge(name, "ask", True, approver="cleo", comment="fine", actor="cleo")
    assert (await house.ended(name)).state is RunState.COMPLETED
    assert house.kinds(name).count("approval.given") == 2
    with pytest.raises(IllegalTransition):
        await house.control.signals.judge(name, "ask", True, approver="ben", actor="ben")


@pytest.mark.parametrize(("on_reject", "state"), [("fail", RunState.FAILED), ("continue", RunState.COMPLETED)])
async def test_one_rejection_is_enough(house: House, on_reject: str, state: RunState) -> None:
    accepted = await house.submit(asks(on_reject=on_reject, required=3))
    await house.control.signals.judge(accepted.workflow_id, "", False, approver="ben", comment="no", actor="ben")
    run = await house.ended(accepted.workflow_id)
    assert run.state is state
    if run.failure is not None:
        assert (run.failure.code, run.failure.message) == ("KNHK-APPROVAL-REJECTED", "rejected by ben: no")


async def test_a_list_says_what_each_run_waits_for(house: House) -> None:
    nap = workflow(step("nap", "wait", params={"duration": "1h"}), timeout="9h")
    ids = [(await house.submit(text)).workflow_id for text in (nap, waits("o"), asks(approvers=["anna"]))]
    await house.engine.projector.reached(house.engine.committer.height)
    rows, _ = await house.control.listing(Filter(), before=None, limit=10)
    found = {row["workflow_id"]: [one["kind"] for one in row["waiting_on"]] for row in rows}
    assert [found[f"wf-{one}"] for one in ids] == [["timer"], ["event"], ["approval"]]
    await house.control.cancel(ids[1], actor="anna")
    await house.engine.projector.reached(house.engine.committer.height)
    rows, _ = await house.control.listing(Filter(), before=None, limit=10)
    assert [row["waiting_on"] for row in rows if row["workflow_id"] == f"wf-{ids[1]}"] == [[]]
    topics = [key for key in house.store._state.rows["runs"] if key.startswith(b"w")]
    assert topics == []


_MOVES = st.lists(st.sampled_from(["submit", "publish", "signal", "crash", "sleep", "retry"]), min_size=3, max_size=14)


@settings(max_examples=30, deadline=None)
@given(moves=_MOVES, latency=st.sampled_from([0.0, 0.01, 0.2]))
def test_no_signal_is_lost_and_none_taken_twice(moves: list[str], latency: float) -> None:
    in_virtual_time(lambda: _life(moves, latency))


async def _life(moves: list[str], latency: float) -> None:
    """Each wave of runs waits for the event of its number; in the end every run has got exactly that."""
    house = await House(latency_s=latency).start()
    runs: list[tuple[int, int]] = []
    published: set[int] = set()
    for number, move in enumerate(moves):
        wave = number // 3
        match move:
            case "submit":
                runs.append((wave, (await house.submit(waits(f"k{wave}"))).workflow_id))
            case "publish":
                await _publish(house, wave)
                published.add(wave)
            case "signal" if runs:
                target, workflow_id = runs[-1]
                with suppress(IllegalTransition):
                    await house.control.signals.signal(
                        workflow_id, "paid", target, signal_id="direct", correlate=f"k{target}", actor="t"
                    )
            case "crash":
                await house.restart()
            case "sleep":
                await asyncio.sleep(1)
            case _:
                for one in published:
                    await _publish(house, one)
    for wave, _ in runs:
        await _publish(house, wave)
    for wave, workflow_id in runs:
        assert await paid(house, workflow_id) == wave
        kinds = house.kinds(workflow_id)
        assert kinds.count("step.completed") == 2
        sources = [one.detail.source for one in house.events(workflow_id) if hasattr(one.detail, "source")]
        assert len(sources) == len(set(sources))
    await asyncio.sleep(40)
    assert house.leaks() == {}
    assert (await house.verify()).valid
    await house.engine.stop()


async def _publish(house: House, wave: int) -> None:
    await house.control.signals.publish("paid", f"k{wave}", wave, event_id=f"e{wave}", keep_ns=HOUR_NS, actor="t")


async def test_steps_inside_a_foreach_wait_each_for_their_own(house: House) -> None:
    each = {
        "name": "each",
        "foreach": {"in": "${{ inputs.orders }}", "as": "order"},
        "steps": [{"name": "pay", "wait_for": {"event": "paid", "correlate": "${{ order }}"}}],
    }
    last = {"name": "ask", "approval": {"approvers": ["anna"]}, "depends_on": ["each"]}
    accepted = await house.submit(workflow(each, last, timeout="9h"), orders=["a", "b", "c"])
    await asyncio.sleep(1)
    shown = (await house.control.status(accepted.workflow_id))["waiting_on"]
    assert sorted(one["correlate"] for one in shown) == ["a", "b", "c"]
    for order in ("c", "a"):
        await house.control.signals.publish("paid", order, order, keep_ns=0, actor="bank")
        await house.restart()
    await house.control.signals.signal(accepted.workflow_id, "paid", "b", correlate="b", actor="bank")
    await house.control.signals.judge(accepted.workflow_id, "ask", True, approver="anna", actor="anna")
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    assert house.kinds(accepted.workflow_id).count("signal.received") == 3
    assert (await house.verify()).valid


async def test_a_signal_is_said_to_be_known_only_when_it_is_durable(build: Any) -> None:
    house = await build(latency_s=10.0)
    name = (await house.submit(waits(timeout="20h"))).workflow_id
    await asyncio.sleep(60)
    first = asyncio.ensure_future(house.control.signals.signal(name, "paid", 7, signal_id="once", actor="shop"))
    while house.engine.scheduler.find(name) is None:
        await asyncio.sleep(0.1)
    first.cancel()  # who sent it went away, and sends it again
    again = await house.control.signals.signal(name, "paid", 7, signal_id="once", actor="shop")
    assert again.replayed
    assert "signal.received" in house.kinds(name)


async def test_partitions_that_are_apart_take_an_event_in_as_soon_as_they_can(build: Any) -> None:
    first, other = await build(), await build(partition=1, leading=False)
    name = (await other.submit(waits("7"))).workflow_id
    down, asked = True, 0

    async def publish(partition: int, kept: KeptEvent, data: Any, actor: str) -> Published:
        nonlocal asked
        asked += 1
        if down:
            raise StorageUnavailable(f"partition {partition} is on its way")
        return await other.control.signals.publish(
            kept.event, kept.correlate, data, event_id=kept.id, keep_ns=HOUR_NS, actor=actor
        )

    first.control.signals.apart = Apart(lambda: [1], publish)
    done = await first.control.signals.publish("paid", "7", 5, event_id="bank", keep_ns=HOUR_NS, actor="bank")
    assert (done.delivered_to, done.event_id) == ([], "bank")
    down = False
    assert await paid(other, name) == 5
    assert await paid(other, (await other.submit(waits("7"))).workflow_id) == 5  # which waits only later
    before = asked
    first.engine.signals.start()  # as after a restart: it may not have come to the end of it before
    await asyncio.sleep(60)
    assert asked > before
    assert other.kinds(name).count("signal.received") == 1
