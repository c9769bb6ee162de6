"""Decisions are written down, carried out step by step, called off, taken over, and never done by who leads no more."""

import asyncio

from knhk.domain import event as ev
from knhk.domain.errors import Conflict, Refused, Unavailable
from knhk.domain.identifier import parse
from knhk.engine.records import events_of
from knhk.scaling import views
from knhk.scaling.autoscaler import Autoscaler
from tests.unit.scaling.conftest import Stage

UP_S, DOWN_S = 300, 600


async def kinds(stage: Stage, scaler: Autoscaler) -> list[str]:
    """What is on the record, as it is committed: `up`, `down`, or an outcome."""
    events, _ = await events_of(stage.house.store, parse(scaler.ledger.entries[-1].record))
    found = []
    for event in events:
        match event.detail:
            case ev.ScalingDecided(_, _, before, after):
                found.append("up" if after > before else "down")
            case ev.ScalingEnded(_, outcome):
                found.append(outcome)
    return found


async def test_an_increase_is_written_down_and_done(stage: Stage) -> None:
    scaler = stage.autoscaler()
    stage.pods.cpu = 1.05
    await scaler.look()
    assert stage.pods.changes == [5]
    assert await kinds(stage, scaler) == ["up", "done"]
    (entry,) = scaler.ledger.entries
    assert "cpu is 1.05 with a target of 0.7: 3 x 1.50 makes 5 replicas" in entry.decided.reason
    assert "cpu 1.05 of 0.7" in entry.decided.signals
    stage.pods.settle()
    await scaler.look()
    assert stage.pods.changes == [5]  # the cooldown
    await asyncio.sleep(UP_S)
    await scaler.look()
    assert stage.pods.changes == [5, 8]


async def test_a_restart_forgets_no_cooldown(stage: Stage) -> None:
    stage.pods.cpu = 1.05
    await stage.autoscaler().look()
    stage.pods.settle()
    await asyncio.sleep(UP_S - 10)
    again = stage.autoscaler()
    await again.look()
    assert again.last is not None
    assert again.last.decision.held == "cooldown"
    await asyncio.sleep(10)
    await again.look()
    assert stage.pods.changes == [5, 8]


async def test_a_decrease_drains_first_and_waits(stage: Stage) -> None:
    scaler, pods = stage.autoscaler(), stage.pods
    pods.cpu = 0.3
    await scaler.look()
    assert scaler.ledger.entries[-1].decided.drains == ("knhk-2",)
    assert (list(pods.marks), pods.changes) == (["knhk-2"], [])
    assert scaler.waits_for == "knhk-2 still owns 4 partitions"
    shown = views.status(scaler)
    assert (shown["replicas"]["wanted"], shown["carrying_out"]["waits_for"]) == (2, scaler.waits_for)
    await scaler.look()
    assert pods.changes == []
    pods.settle()
    await scaler.look()
    assert pods.changes == [2]
    assert await kinds(stage, scaler) == ["down", "done"]
    pods.settle()  # the pod has gone: by its name another may come, which is to take part
    await scaler.look()
    assert pods.marks == {}


async def test_a_load_that_rises_calls_it_off(stage: Stage) -> None:
    scaler, pods = stage.autoscaler(), stage.pods
    pods.cpu = 0.3
    await scaler.look()
    pods.cpu = 0.65  # of three; two would have 0.98
    await scaler.look()
    assert (pods.changes, pods.marks) == ([], {})
    assert await kinds(stage, scaler) == ["down", "cancelled"]
    assert "2 replicas would be too few" in scaler.ledger.entries[-1].problem


async def test_what_takes_too_long_is_called_off(stage: Stage) -> None:
    scaler, pods = stage.autoscaler(), stage.pods
    pods.cpu = 0.3
    await scaler.look()
    await asyncio.sleep(601)
    await scaler.look()
    assert (pods.changes, pods.marks) == ([], {})
    assert "knhk-2 still owns 4 partitions after 600 s" in scaler.ledger.entries[-1].problem


async def test_who_an_operator_has_drained_stays_drained(stage: Stage) -> None:
    scaler, pods = stage.autoscaler(), stage.pods
    pods.marks["knhk-2"] = "operator"
    pods.cpu = 0.3
    await scaler.look()
    assert scaler.ledger.entries[-1].decided.drains == ()
    pods.cpu = 0.65
    await scaler.look()
    assert pods.marks == {"knhk-2": "operator"}


async def test_somebody_who_sets_the_number_meanwhile_is_right(stage: Stage) -> None:
    scaler, pods = stage.autoscaler(), stage.pods
    pods.cpu = 0.3
    await scaler.look()
    pods.count = 6
    await scaler.look()
    assert "somebody has set 6 replicas" in scaler.ledger.entries[-1].problem
    assert pods.marks == {}


async def test_a_new_leader_goes_on(stage: Stage) -> None:
    """Even if the old one is among those that go: it gives its partitions away, the leader's too."""
    first, pods = stage.autoscaler(), stage.pods
    pods.cpu = 0.3
    await first.look()
    pods.leading = False
    await first.look()
    assert first.last is None
    pods.leading = True
    second = stage.autoscaler()
    pods.settle()
    await second.look()
    assert pods.changes == [2]
    assert await kinds(stage, second) == ["down", "done"]


async def test_a_leader_that_died_after_the_change_is_made_up_for(stage: Stage) -> None:
    """Between changing the number and writing it down."""
    first, pods = stage.autoscaler(), stage.pods
    pods.cpu = 0.3
    await first.look()
    pods.count = 2
    second = stage.autoscaler()
    await second.look()
    assert pods.changes == []
    assert await kinds(stage, second) == ["down", "done"]


async def test_a_deposed_leader_does_nothing(stage: Stage) -> None:
    scaler, pods = stage.autoscaler(), stage.pods
    pods.cpu = 2.0
    pods.leading = False
    await scaler.look()
    assert (pods.changes, scaler.ledger.entries) == ([], [])

    # It is deposed in the middle of a look, when the loads have been asked for.
    pods.leading, asked = True, pods.loads

    async def loads_and_falls() -> object:
        pods.leading = False
        return await asked()

    pods.loads = loads_and_falls  # type: ignore[assignment]
    await scaler.look()
    assert (pods.changes, scaler.ledger.entries) == ([], [])


async def test_without_a_receipt_nothing_is_done(stage: Stage) -> None:
    """What a deposed leader meets: its engine takes nothing any more."""
    scaler, pods = stage.autoscaler(), stage.pods
    pods.cpu = 2.0
    stage.house.engine.admission.closed = True
    try:
        await scaler.look()
    except Unavailable:
        pass
    else:
        raise AssertionError("it was decided without a receipt")
    assert (pods.changes, scaler.ledger.entries) == ([], [])


async def test_a_conflict_and_an_outage_are_tried_again(stage: Stage) -> None:
    scaler, pods = stage.autoscaler(), stage.pods
    pods.cpu = 1.05
    pods.errors = [Conflict("the object has been modified"), Unavailable("the API server does not answer")]
    for _ in range(2):
        await scaler.look()
        assert scaler.health() != "ok"
        assert pods.changes == []
    await scaler.look()
    assert pods.changes == [5]
    assert await kinds(stage, scaler) == ["up", "done"]
    assert scaler.health() == "ok"


async def test_a_refusal_ends_it_and_shows_in_health(stage: Stage) -> None:
    scaler, pods = stage.autoscaler(), stage.pods
    pods.cpu = 1.05
    pods.errors = [Refused("HTTP 403: forbidden", hint="docs/scaling.md has a Role.")]
    await scaler.look()
    assert await kinds(stage, scaler) == ["up", "failed"]
    for _ in range(3):
        await scaler.look()
    assert "HTTP 403: forbidden docs/scaling.md has a Role." in scaler.health()
    assert len(scaler.ledger.entries) == 1  # and not every few seconds
    await asyncio.sleep(UP_S)
    await scaler.look()
    assert pods.changes == [5]
    assert scaler.health() == "ok"


async def test_a_replica_that_does_not_answer_keeps_all(stage: Stage) -> None:
    scaler, pods = stage.autoscaler(), stage.pods
    pods.cpu, pods.silent = 0.01, {"knhk-1": "ConnectError: refused"}
    await scaler.look()
    assert scaler.ledger.entries == []
    shown = views.explain(scaler)
    assert (shown["held_by"], shown["unknown"]) == ("unknown", ["knhk-1: ConnectError: refused"])
    assert "knhk-1: ConnectError: refused" in shown["reason"]


async def test_those_who_come_back_take_part(stage: Stage) -> None:
    """A pod that is wanted again before the mark of the one before it was taken away."""
    scaler, pods = stage.autoscaler(), stage.pods
    pods.cpu = 0.3
    await scaler.look()
    pods.settle()
    await scaler.look()
    pods.cpu = 1.4
    await scaler.look()
    assert pods.changes == [2, 6]  # three members still have it all: 3 x 1.4 of 0.7
    assert pods.marks == {}


async def test_the_duty_works_by_itself(stage: Stage) -> None:
    scaler = stage.autoscaler()
    stage.pods.cpu = 1.05
    await scaler.start()
    await asyncio.sleep(60)
    await scaler.stop()
    assert stage.pods.changes == [5]
    assert scaler.counts["up", "done"] == 1


async def test_the_record_of_a_month_ends_with_it(stage: Stage) -> None:
    scaler, pods = stage.autoscaler(), stage.pods
    pods.cpu = 1.05
    await scaler.look()
    pods.settle()
    await asyncio.sleep(3_600)
    await scaler.look()
    one, other = scaler.ledger.entries
    assert one.record != other.record
    assert [one.decided.name, other.decided.name] == ["2026-01", "2026-02"]
    again = stage.autoscaler()
    await again.look()
    assert [entry.record for entry in again.ledger.entries] == [one.record, other.record]
