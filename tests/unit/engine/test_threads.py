"""Blocking actions, on real time and real threads."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from knhk.actions.registry import INVOCATION, Action, Failed, Invocation, Outcome, Succeeded
from knhk.domain.errors import InvalidParameter
from knhk.domain.plan import ActionTraits
from knhk.domain.run import RunState
from knhk.platform.clock import SystemClock
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House


class Blocking:
    """Actions that block a thread: `hangs` until the test lets it go, `names` tells its thread, `raises` raises."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.calls = 0

    def hangs(self, _invocation: Invocation) -> Outcome:
        self.calls += 1
        self.go_on.wait(30)
        return Succeeded("late")

    def names(self, _invocation: Invocation) -> Outcome:
        found = INVOCATION.get()
        assert found is not None
        assert (found.step, found.attempt) == ("a", 1)  # what it logs can be told from what others log
        return Succeeded(threading.current_thread().name)

    def raises(self, invocation: Invocation) -> Outcome:
        if invocation.params.get("input"):
            raise InvalidParameter("that is no input")
        raise ZeroDivisionError("x" * 5000)


@pytest.fixture
def blocking() -> Blocking:
    return Blocking()


@pytest.fixture
async def house(blocking: Blocking) -> AsyncIterator[House]:
    house = House(clock=SystemClock())
    registry = house.effects.registry()
    for name in ("hangs", "names", "raises"):
        registry.register(Action(ActionTraits(name, pure=False), "thread", getattr(blocking, name), __name__))
    registry.register(Action(ActionTraits("raises-inline", pure=True), "inline", blocking.raises, __name__))
    house.registry = registry
    await house.start()
    yield house
    blocking.go_on.set()
    await house.engine.stop()


async def test_a_blocking_action_runs_in_a_thread_of_its_own(house: House) -> None:
    accepted = await house.submit(workflow(step("a", "names")), wait_s=5)
    assert accepted.results is not None
    assert accepted.results["a"].startswith("knhk-action")


async def test_a_thread_that_hangs_is_given_up_and_what_it_returns_later_is_not_looked_at(
    house: House, blocking: Blocking
) -> None:
    accepted = await house.submit(workflow(step("a", "hangs", timeout="50ms")), wait_s=5)
    assert accepted.failure is not None
    assert accepted.failure.code == "KNHK-STEP-TIMEOUT"
    before = house.kinds(accepted.workflow_id)
    blocking.go_on.set()
    await asyncio.sleep(0.05)
    assert house.kinds(accepted.workflow_id) == before
    assert blocking.calls == 1


async def test_a_run_whose_thread_hangs_can_be_cancelled(house: House) -> None:
    accepted = await house.submit(workflow(step("a", "hangs")))
    await house.control.cancel(accepted.workflow_id, actor="test")
    assert (await house.fold(accepted.workflow_id)).state is RunState.CANCELLED


@pytest.mark.parametrize("action", ["raises", "raises-inline"])
async def test_an_exception_becomes_a_failure_and_only_bad_input_is_final(house: House, action: str) -> None:
    retry = {"max_attempts": 2, "delay": "1ms"}
    accepted = await house.submit(workflow(step("a", action, params={"input": True}, retry=retry)), wait_s=5)
    assert accepted.failure is not None
    assert accepted.failure.code == InvalidParameter.code
    assert house.kinds(accepted.workflow_id).count("step.retrying") == 0
    accepted = await house.submit(workflow(step("a", action, params={"input": False}, retry=retry)), wait_s=5)
    assert accepted.failure is not None
    assert accepted.failure.code == "KNHK-ACTION-ERROR"
    assert accepted.failure.message.startswith("ZeroDivisionError: xxx")
    assert len(accepted.failure.message) <= 2000
    assert house.kinds(accepted.workflow_id).count("step.retrying") == 1


async def test_a_coroutine_that_will_not_be_cancelled_does_not_hold_up_its_run(house: House) -> None:
    async def stubborn(_invocation: Invocation) -> Outcome:
        for _ in range(3):
            try:
                await asyncio.sleep(0.2)
            except asyncio.CancelledError:
                continue
        return Failed("LATE", "nobody looks at this")

    assert house.registry is not None
    house.registry.register(Action(ActionTraits("stubborn", pure=False), "async", stubborn, __name__))
    await house.restart()
    accepted = await house.submit(workflow(step("a", "stubborn", timeout="20ms")), wait_s=5)
    assert accepted.failure is not None
    assert accepted.failure.code == "KNHK-STEP-TIMEOUT"
