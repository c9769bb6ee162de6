"""Remote workers on virtual time: leases, tokens, deliveries; what a late worker is told; what a crash leaves."""

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest

from knhk.actions.registry import Failed, RetryLater, Succeeded, WaitUntil
from knhk.actions.workers import Task
from knhk.domain.errors import LeaseLost, ShuttingDown, WorkflowNotFound
from knhk.domain.event import StepStarted
from knhk.domain.identifier import to_text
from knhk.domain.run import RunState, StepState
from knhk.engine.leases import WorkerLimits
from knhk.engine.service import Settings
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

SECOND = 1_000_000_000
REMOTE = workflow(step("a", "render", queue="gpu", params={"n": 1}), timeout="10h")


async def poll(house: House, worker: str = "w1", *queues: str, wait_s: float = 0.0, **asked: Any) -> list[Task]:
    actions = asked.pop("actions", ())
    given = {"limit": 10, "lease_ns": 30 * SECOND, **asked}
    return await house.engine.workers.poll(worker, queues or ("gpu",), actions, wait_s=wait_s, **given)


async def report(house: House, task: Task, outcome: Any = None, token: int | None = None) -> bool:
    given = task.assignment
    outcome = Succeeded({"by": task.worker}) if outcome is None else outcome
    return await house.engine.workers.report(given.workflow_id, given.step, token or task.token, outcome)


def leases(house: House, workflow_id: int) -> list[tuple[str, int]]:
    """Who was given which attempt, as the receipts have it."""
    return [(event.detail.worker, event.attempt) for event in house.events(workflow_id) if _is_lease(event.detail)]


def _is_lease(detail: Any) -> bool:
    return isinstance(detail, StepStarted) and detail.token > 0


async def test_a_worker_takes_an_attempt_and_completes_it(house: House) -> None:
    descriptor = workflow(
        step("first", "process", params={"output": 7}),
        step("a", "render", ["first"], queue="gpu", params={"n": "${{ steps.first.output }}"}),
        step("last", "process", ["a"], params={"output": "${{ steps.a.output.by }}"}),
    )
    accepted = await house.submit(descriptor)
    (task,) = await poll(house, wait_s=5)
    assert (task.assignment.action, task.assignment.params) == ("render", {"n": 7})
    assert task.assignment.dependencies == {"first": 7}
    assert task.assignment.idempotency_key == f"{to_text(accepted.workflow_id)}/a"
    assert leases(house, accepted.workflow_id) == [("w1", 1)]  # durable before the worker heard of it
    assert await report(house, task) is False
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.COMPLETED
    assert await report(house, task) is True  # asked again: its answer got lost
    assert (await house.verify()).valid
    assert not house.leaks()


async def test_queues_and_actions_decide_who_gets_what(house: House) -> None:
    steps = [step("a", "render", queue="gpu"), step("b", "train", queue="gpu"), step("c", "render", queue="cpu")]
    await house.submit(workflow(*steps))
    assert await poll(house, "w1", "other") == []
    assert [task.assignment.step for task in await poll(house, "w1", "cpu", "other")] == ["c"]
    assert [task.assignment.step for task in await poll(house, "w1", actions=["train"])] == ["b"]
    assert [task.assignment.step for task in await poll(house, "w1")] == ["a"]
    shown = await house.engine.workers.overview()
    assert shown["queues"] == [
        {"queue": "cpu", "waiting": 0, "held": 1},
        {"queue": "gpu", "waiting": 0, "held": 2},
    ]


async def test_the_oldest_come_first_in_batches(house: House) -> None:
    for number in range(5):
        await house.submit(workflow(step(f"s{number}", "render" if number % 2 else "train", queue="gpu")))
    first, second = await poll(house, limit=3), await poll(house, limit=3)
    assert [task.assignment.step for task in (*first, *second)] == [f"s{number}" for number in range(5)]
    tokens = [task.token for task in (*first, *second)]
    assert tokens == sorted(set(tokens))


async def test_a_poll_waits_for_work_and_only_one_of_them_gets_it(house: House) -> None:
    polls = [asyncio.create_task(poll(house, f"w{number}", wait_s=20)) for number in range(3)]
    await asyncio.sleep(5)
    polls[0].cancel()  # the one that has waited longest goes away
    await house.submit(REMOTE)
    got = await asyncio.gather(*polls[1:])
    assert sorted(map(len, got)) == [0, 1]


async def test_a_poll_that_is_broken_off_leaves_nothing_leased(house: House) -> None:
    waiting = asyncio.create_task(poll(house, "dead", wait_s=20))
    other = asyncio.create_task(poll(house, "other", wait_s=20))
    await asyncio.sleep(1)
    submitting = asyncio.create_task(house.submit(REMOTE))
    for _ in range(50):
        await asyncio.sleep(0)
        if not waiting.done() and house.engine.leases._held:
            break
    waiting.cancel()
    await submitting
    assert [task.worker for task in await other] == ["other"]


async def test_a_dead_workers_lease_runs_out_and_a_late_result_is_refused(house: House) -> None:
    accepted = await house.submit(REMOTE)
    (dead,) = await poll(house, "dead")
    stale = dead.token
    await asyncio.sleep(29)
    assert await poll(house) == []
    (task,) = await poll(house, "alive", wait_s=5)
    assert (task.assignment.attempt, task.token > stale) == (1, True)
    assert await house.engine.workers.heartbeat("dead", [stale, task.token]) == ([task.token], [stale])
    for outcome in (None, Failed("X", "no"), RetryLater("X", "no")):
        with pytest.raises(LeaseLost):
            await report(house, dead, outcome, token=stale)
    await report(house, task)
    with pytest.raises(LeaseLost):
        await report(house, dead, token=stale)
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.COMPLETED
    assert leases(house, accepted.workflow_id) == [("dead", 1), ("alive", 1)]
    assert house.kinds(accepted.workflow_id).count("step.completed") == 1


async def test_heartbeats_keep_a_lease(house: House) -> None:
    accepted = await house.submit(REMOTE)
    (task,) = await poll(house)
    for _ in range(20):
        await asyncio.sleep(20)
        assert await house.engine.workers.heartbeat("w1", [task.token]) == ([task.token], [])
        assert await poll(house, "w2") == []
    await report(house, task)
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED


async def test_failures_follow_the_retry_policy(house: House) -> None:
    retry = {"max_attempts": 3, "delay": "10s", "jitter": False}
    accepted = await house.submit(workflow(step("a", "render", queue="gpu", retry=retry)))
    (task,) = await poll(house)
    await report(house, task, RetryLater("BUSY", "busy", 60 * SECOND))
    assert await poll(house, wait_s=59) == []
    (task,) = await poll(house, wait_s=5)
    assert task.assignment.attempt == 2
    await report(house, task, Failed("BROKEN", "broken"))
    assert await report(house, task, Failed("BROKEN", "broken")) is True
    run = await house.ended(accepted.workflow_id)
    assert run.failure is not None
    assert (run.failure.code, run.failure.step) == ("BROKEN", "a")


async def test_an_attempt_that_kills_its_workers_is_not_given_out_for_ever(build: Any) -> None:
    house = await build(workers=WorkerLimits(max_deliveries=3))
    accepted = await house.submit(REMOTE)
    for number in range(3):
        assert [task.assignment.attempt for task in await poll(house, f"w{number}", wait_s=40)] == [1]
    run = await house.ended(accepted.workflow_id)
    assert run.failure is not None
    assert run.failure.code == "KNHK-WORKER-LOST"
    assert "'w2'" in run.failure.message


async def test_at_most_once_is_never_given_out_again(house: House) -> None:
    descriptor = workflow(step("a", "render", queue="gpu", semantics="at_most_once"), timeout="1h")
    accepted = await house.submit(descriptor)
    await house.restart()  # nobody was given it yet: it has not begun
    (task,) = await poll(house, wait_s=5)
    await house.restart()
    await report(house, task)  # the worker answers the next server
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED
    accepted = await house.submit(descriptor)
    await poll(house, wait_s=5)
    run = await house.ended(accepted.workflow_id)
    assert run.failure is not None
    assert run.failure.code == "KNHK-STEP-OUTCOME-UNKNOWN"


@pytest.mark.parametrize("answers", [True, False])
async def test_a_lease_outlives_the_server(house: House, answers: bool) -> None:
    accepted = await house.submit(REMOTE)
    (task,) = await poll(house)
    await house.restart()
    assert await poll(house, "w2") == []
    assert await house.engine.workers.heartbeat("w1", [task.token]) == ([task.token], [])
    if answers:
        assert await report(house, task) is False
        assert leases(house, accepted.workflow_id) == [("w1", 1)]
    else:
        (again,) = await poll(house, "w2", wait_s=70)
        with pytest.raises(LeaseLost):
            await report(house, task)
        await report(house, again)
        assert leases(house, accepted.workflow_id) == [("w1", 1), ("w2", 1)]
    await house.restart()
    assert await report(house, task if answers else again) is True
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED


async def test_a_result_that_was_committed_before_a_crash_is_known_after_it(house: House) -> None:
    await house.submit(workflow(step("a", "render", queue="gpu"), step("b", "render", ["a"], queue="gpu")))
    (task,) = await poll(house)
    await report(house, task)
    await house.restart()
    assert await report(house, task) is True
    (following,) = await poll(house, wait_s=5)
    assert following.assignment.step == "b"


async def test_the_time_of_a_step_begins_when_a_worker_takes_it(house: House) -> None:
    descriptor = workflow(step("a", "render", queue="gpu", timeout="10s"), timeout="1h")
    accepted = await house.submit(descriptor)
    await asyncio.sleep(600)
    (task,) = await poll(house)
    await asyncio.sleep(9)
    assert (await house.engine.workers.heartbeat("w1", [task.token]))[0]
    await asyncio.sleep(2)
    assert await house.engine.workers.heartbeat("w1", [task.token]) == ([], [task.token])
    with pytest.raises(LeaseLost):
        await report(house, task)
    run = await house.ended(accepted.workflow_id)
    assert run.failure is not None
    assert run.failure.code == "KNHK-STEP-TIMEOUT"


async def test_a_cancelled_run_takes_its_attempts_back(house: House) -> None:
    waiting, held = await house.submit(REMOTE), await house.submit(REMOTE)
    await house.control.cancel(waiting.workflow_id, actor="test")
    (task,) = await poll(house)
    assert task.assignment.workflow_id == to_text(held.workflow_id)
    await house.control.cancel(held.workflow_id, actor="test")
    assert await house.engine.workers.heartbeat("w1", [task.token]) == ([], [task.token])
    with pytest.raises(LeaseLost):
        await report(house, task)
    assert not house.engine.leases._task_of
    assert not house.leaks()


async def test_what_is_given_back_goes_to_another_worker_at_once(house: House) -> None:
    await house.submit(REMOTE)
    (task,) = await poll(house)
    waiting = asyncio.create_task(poll(house, "w2", wait_s=10))
    await asyncio.sleep(1)
    token = task.token
    assert await house.engine.workers.release("stranger", [token]) == []
    assert await house.engine.workers.release("w1", [token, 5]) == [token, 5]
    (again,) = await waiting
    assert again.worker == "w2"
    token = again.token
    assert await house.engine.workers.release("w2") == [token]


async def test_a_worker_can_leave_a_timer(house: House) -> None:
    accepted = await house.submit(REMOTE)
    (task,) = await poll(house)
    await report(house, task, WaitUntil(house.clock.now_ns() + 100 * SECOND, {"late": True}))
    assert (await house.fold(accepted.workflow_id)).steps == [StepState.WAITING]
    assert await report(house, task, WaitUntil(1, None)) is True
    assert (await house.ended(accepted.workflow_id)).state is RunState.COMPLETED


async def test_answers_that_fit_nothing_are_refused(house: House) -> None:
    accepted = await house.submit(REMOTE)
    (task,) = await poll(house)
    workers, workflow_id = house.engine.workers, to_text(accepted.workflow_id)
    for given in ((workflow_id, "b", task.token), (workflow_id, "a", task.token + 1)):
        with pytest.raises(LeaseLost):
            await workers.report(*given, Succeeded(1))
    with pytest.raises(WorkflowNotFound):
        await workers.report(to_text(accepted.workflow_id + 1), "a", task.token, Succeeded(1))
    await report(house, task)


async def test_what_waits_for_a_worker_says_so(house: House) -> None:
    accepted = await house.submit(REMOTE)
    shown = await house.control.status(accepted.workflow_id)
    assert shown["waiting_on"] == [{"kind": "worker", "step": "a", "since": None, "until": None, "queue": "gpu"}]
    await poll(house)
    shown = await house.control.status(accepted.workflow_id)
    assert (shown["waiting_on"], shown["steps"][0]["worker"]) == ([], "w1")


async def test_a_server_that_stops_answers_those_who_wait(house: House) -> None:
    waiting = asyncio.create_task(poll(house, wait_s=1000))
    await asyncio.sleep(1)
    house.engine.workers.close()
    with pytest.raises(ShuttingDown):
        await waiting


@pytest.mark.parametrize("seed", range(6))
async def test_random_histories_complete_every_step_once(seed: int) -> None:
    """Workers that die, stall and answer late, and a server that crashes: one result of each step, of a lease that was
    good; nothing is lost and everything verifies."""
    rng = random.Random(seed)
    limits = Settings(node_id="node-1", threads=2, workers=WorkerLimits(lease_ns=20 * SECOND, max_deliveries=1000))
    house = await House(limits, seed=seed, latency_s=0.01).start()
    chain = [step(f"s{n}", "render", [f"s{n - 1}"] if n else [], queue="gpu") for n in range(3)]
    runs = [(await house.submit(workflow(*chain, timeout="100h"))).workflow_id for _ in range(4)]
    late: list[tuple[Task, int]] = []
    for _ in range(10_000):
        if all([(await house.fold(one)).ended for one in runs]):
            break
        for task in await poll(house, f"w{rng.randrange(3)}", limit=2, wait_s=2.0, lease_ns=20 * SECOND):
            match rng.choice(["good", "good", "dies", "late"]):
                case "good":
                    await asyncio.sleep(rng.random() * 5)
                    await _either(house, task, task.token)
                case "late":
                    late.append((task, task.token))
        if late and rng.random() < 0.3:
            await _either(house, *late.pop(0))
        if rng.random() < 0.1:
            await house.restart()
    for one in runs:
        assert (await house.fold(one)).state is RunState.COMPLETED
        assert house.kinds(one).count("step.completed") == 3
        tokens = [event.detail.token for event in house.events(one) if isinstance(event.detail, StepStarted)]
        assert tokens == sorted(set(tokens))
    assert (await house.verify()).valid
    await house.engine.stop()


async def _either(house: House, task: Task, token: int) -> None:
    with suppress(LeaseLost):
        await report(house, task, token=token)
