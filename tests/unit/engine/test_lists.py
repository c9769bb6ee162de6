"""Lists of runs, the rows behind them, and following a run."""

import asyncio
from typing import Any

import pytest

from knhk.domain import summary as rows
from knhk.domain.errors import InvalidParameter, WorkflowNotFound
from knhk.domain.event import DETAILS, Event
from knhk.domain.summary import Summary
from knhk.engine.control import Filter
from knhk.engine.projector import FOLD, row_key
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House


async def some_runs(house: House) -> dict[str, list[int]]:
    """Runs in several states, by state, oldest first."""
    descriptors = {
        "completed": workflow(step("a"), name="good", department="sales"),
        "failed": workflow(step("a", "fail"), name="bad", department="sales"),
        "running": workflow(step("a", "wait", params={"duration": "1h"}), name="slow", timeout="2h"),
        "cancelled": workflow(step("a", "wait", params={"duration": "1h"}), name="slow", timeout="2h"),
        "paused": workflow(step("a", "wait", params={"duration": "1h"}), name="slow", timeout="2h"),
    }
    made: dict[str, list[int]] = {state: [] for state in descriptors}
    for _ in range(3):
        for state, descriptor in descriptors.items():
            run_id = (await house.submit(descriptor)).workflow_id
            made[state].append(run_id)
            if state == "cancelled":
                await house.control.cancel(run_id, actor="test")
            elif state == "paused":
                await house.control.pause(run_id, actor="test")
            await asyncio.sleep(0.01)
    await asyncio.sleep(1)
    return made


async def listed(house: House, wanted: Filter, limit: int) -> list[str]:
    """All pages of a list, as ids."""
    found: list[str] = []
    before = None
    while True:
        page, before = await house.control.listing(wanted, before=before, limit=limit)
        assert len(page) <= limit
        found += [row["workflow_id"] for row in page]
        if before is None:
            return found


def ids(numbers: list[int]) -> list[str]:
    return [f"wf-{number}" for number in sorted(numbers, reverse=True)]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_pages_together_are_the_whole_list_newest_first(house: House, limit: int) -> None:
    made = await some_runs(house)
    everything = [one for several in made.values() for one in several]
    assert await listed(house, Filter(), limit) == ids(everything)
    for state, several in made.items():
        assert await listed(house, Filter(state=state), limit) == ids(several)
    assert await listed(house, Filter(name="slow"), limit) == ids(made["running"] + made["cancelled"] + made["paused"])
    assert await listed(house, Filter(department="sales", state="failed"), limit) == ids(made["failed"])
    assert await listed(house, Filter(name="nothing"), limit) == []


async def test_a_run_moves_from_one_state_s_list_to_the_next(house: House) -> None:
    made = await some_runs(house)
    await house.control.resume(made["paused"][0], actor="test")
    await house.control.retry(made["cancelled"][0], actor="test")
    await asyncio.sleep(1)
    assert await listed(house, Filter(state="paused"), 10) == ids(made["paused"][1:])
    assert await listed(house, Filter(state="cancelled"), 10) == ids(made["cancelled"][1:])
    assert await listed(house, Filter(state="running"), 10) == ids(
        [*made["running"], made["paused"][0], made["cancelled"][0]]
    )


async def test_a_state_that_does_not_exist_is_refused(house: House) -> None:
    with pytest.raises(InvalidParameter):
        await house.control.listing(Filter(state="done"), before=None, limit=10)


class Seen:
    """A fold that counts what it sees."""

    kinds = frozenset(DETAILS.values())

    def __init__(self) -> None:
        self.events: list[tuple[int, str]] = []

    def take(self, summary: Summary, event: Event, _action: str) -> None:
        self.events.append((summary.workflow_id, type(event.detail).__name__))


async def stored_rows(house: House) -> dict[int, Summary]:
    found = {}
    for run_id in house.store._state.receipts:
        raw = await house.store.row(FOLD, row_key(run_id))
        assert raw is not None
        found[run_id] = rows.decode(raw)
    return found


async def folded_rows(house: House) -> dict[int, Summary]:
    """The rows as the receipts give them."""
    found = {}
    for run_id in house.store._state.receipts:
        found[run_id] = Summary(run_id)
        for event in house.events(run_id):
            rows.fold(found[run_id], event)
    return found


async def test_a_queue_that_overflows_is_made_up_for_from_the_journal(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import deque

    seen = Seen()
    house.folds = [seen]
    await house.restart()
    monkeypatch.setattr(house.engine.projector, "_queue", deque(maxlen=3))
    for _ in range(30):
        await house.submit(workflow(step("a", "effect")))
    await asyncio.sleep(5)
    assert await stored_rows(house) == await folded_rows(house)
    assert len(seen.events) == 30 * 4
    assert len(set(seen.events)) == 30 * 4, "each event is seen once"


async def test_rows_that_were_lost_are_folded_again_at_the_next_start(house: House) -> None:
    await some_runs(house)
    await house.crash()
    house.store._state.rows.clear()
    house.store._state.cursors.clear()
    await asyncio.sleep(0.01)
    await house.start()
    await asyncio.sleep(5)
    assert await stored_rows(house) == await folded_rows(house)


async def test_stopping_leaves_no_row_out(build: Any) -> None:
    house = await build(latency_s=0.05)
    for _ in range(20):
        await house.submit(workflow(step("a", "effect")))
    await house.engine.stop()
    assert await stored_rows(house) == await folded_rows(house)
    await asyncio.sleep(0.01)
    await house.start()


async def test_following_a_run_gives_every_receipt_once_and_comes_to_an_end(house: House) -> None:
    steps = [step(f"s{n}", "effect", [f"s{n - 1}"] if n else [], params={"takes_s": 20.0}) for n in range(5)]
    accepted = await house.submit(workflow(*steps))
    seen = []
    silences = 0
    async for sealed in house.control.follow(accepted.workflow_id, 2):
        if sealed is None:
            silences += 1
        else:
            seen.append(sealed.receipt().seq)
    assert seen == list(range(2, len(house.receipts(accepted.workflow_id))))
    assert silences, "now and then it says that nothing happened, so that a dead connection is noticed"
    assert not house.engine.watchers._watched


async def test_following_what_has_ended_or_does_not_exist_returns_at_once(house: House) -> None:
    run = await house.run(workflow(step("a")))
    after_the_end = [one async for one in house.control.follow(run.workflow_id, 100)]
    assert after_the_end == []
    with pytest.raises(WorkflowNotFound):
        [one async for one in house.control.follow(1 << 40, 0)]
