"""Sagas: what was done is undone, last first, when a run does not complete; `on_failure` and `finally`."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knhk.domain.run import RunState, StepState
from tests.simulation.clock import in_virtual_time
from tests.simulation.descriptors import step, workflow
from tests.simulation.house import House

GO = {"event": "go"}


def does(name: str, after: Any = (), *, undo: Any = None, rest: Any = None, **params: Any) -> dict[str, Any]:
    """A step with an effect, and one that undoes it."""
    compensate = {"compensate": {"action": "effect", "params": undo or {}}}
    return step(name, "effect", after, params=params, **compensate, **(rest or {}))


def fails(name: str, after: Any = (), **params: Any) -> dict[str, Any]:
    return step(name, "effect", after, params={"fails": True, **params})


def undone(house: House) -> list[str]:
    return [one.removesuffix(":compensate") for one in house.effects.order() if one.endswith(":compensate")]


async def test_what_was_done_is_undone_in_reverse_when_the_run_fails(house: House) -> None:
    run = await house.run(
        workflow(
            does("a", gives={"id": 7}, undo={"gives": "${{ [input.gives.id, output.id] }}"}),
            does("b", ["a"]),
            does("c", ["b"]),
            fails("d", ["c"]),
            does("never", ["d"]),
        )
    )
    assert run.state is RunState.FAILED
    assert run.failure is not None
    assert run.failure.step == "d"
    assert house.effects.order() == ["a", "b", "c", "d", "c:compensate", "b:compensate", "a:compensate"]
    assert run.steps == [*[StepState.COMPENSATED] * 3, StepState.FAILED, StepState.PENDING]
    kinds = house.kinds(run.workflow_id)
    assert kinds.count("step.compensated") == 3
    assert kinds.index("workflow.ending") < kinds.index("step.compensated")
    last = [one.event() for one in house.receipts(run.workflow_id) if one.step == "a:compensate"][-1]
    assert last.output_digest
    shown = await house.control.inspect(run.workflow_id)
    assert shown["steps"][0]["state"] == "compensated"
    assert (await house.verify()).valid
    assert not house.leaks()


async def test_a_run_that_completes_undoes_nothing(house: House) -> None:
    run = await house.run(workflow(does("a"), does("b", ["a"])))
    assert run.state is RunState.COMPLETED
    assert undone(house) == []


async def test_a_cancel_undoes_and_a_second_one_ends_at_once(house: House) -> None:
    accepted = await house.submit(
        workflow(does("a", undo={"takes_s": 5.0}), step("b", "effect", ["a"], params={"hangs": True}))
    )
    await asyncio.sleep(1)
    await house.control.cancel(accepted.workflow_id, actor="test", reason="enough")
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.CANCELLED
    assert run.failure is not None
    assert run.failure.message == "cancelled: enough"
    assert undone(house) == ["a"]
    assert asyncio.get_running_loop().time() == pytest.approx(6, abs=0.2)
    again = await house.submit(
        workflow(does("a", undo={"hangs": True}), step("b", "effect", ["a"], params={"hangs": True}))
    )
    await asyncio.sleep(1)
    for _ in range(2):
        await house.control.cancel(again.workflow_id, actor="test")
    assert (await house.ended(again.workflow_id)).state is RunState.CANCELLED
    assert not house.leaks()


async def test_a_run_that_times_out_undoes_although_its_time_is_over(house: House) -> None:
    slow = step("b", "effect", ["a"], params={"hangs": True})
    run = await house.run(workflow(does("a", undo={"takes_s": 30.0}), slow, timeout="10s"))
    assert run.state is RunState.TIMED_OUT
    assert undone(house) == ["a"]


async def test_a_compensation_is_retried_and_one_that_fails_does_not_keep_the_others_from_being_done(
    house: House,
) -> None:
    retry = {"max_attempts": 3, "delay": "1s", "jitter": False}
    broken = {"compensate": {"action": "effect", "params": {"fails_first": 9}, "retry": retry}}
    run = await house.run(
        workflow(
            does("a"),
            step("b", "effect", ["a"], **broken),
            does("c", ["b"], undo={"fails_first": 1}),
            fails("d", ["c"]),
            retries=2,
        )
    )
    assert run.state is RunState.FAILED
    assert run.failure is not None
    assert run.failure.step == "d"
    assert undone(house) == ["c", "c", "b", "b", "b", "a"]
    assert run.steps[:3] == [StepState.COMPENSATED, StepState.COMPLETED, StepState.COMPENSATED]
    assert "step.failed" in house.kinds(run.workflow_id, "b:compensate")


async def test_steps_inside_are_undone_too_and_a_compensation_may_have_steps(house: House) -> None:
    refund = {"steps": [step("tell", "effect", params={"gives": "${{ output }}"}), step("pay", "effect", ["tell"])]}
    run = await house.run(
        workflow(
            {"name": "each", "foreach": {"in": [1, 2], "concurrency": 1}, "steps": [does("x"), does("y", ["x"])]},
            step("b", "effect", ["each"], params={"gives": 5}, compensate=refund),
            fails("c", ["b"]),
        )
    )
    assert run.state is RunState.FAILED
    assert house.effects.order()[6:] == [
        "b:compensate/tell",
        "b:compensate/pay",
        "each[1]/y:compensate",
        "each[1]/x:compensate",
        "each[0]/y:compensate",
        "each[0]/x:compensate",
    ]


async def test_a_failure_that_is_dealt_with_undoes_what_was_done_inside(house: House) -> None:
    saga = [does("x"), does("y", ["x"]), step("z", "effect", ["y"], params={"fails": "${{ item == 2 }}"})]
    run = await house.run(
        workflow(
            does("before"),
            {
                "name": "orders",
                "depends_on": ["before"],
                "foreach": {"in": [1, 2, 3], "max_failures": 1, "concurrency": 1},
                "steps": saga,
            },
            {
                "name": "caught",
                "depends_on": ["orders"],
                "steps": [does("p"), fails("q", ["p"])],
                "catch": {"steps": [step("fix", "effect")]},
            },
        )
    )
    assert run.state is RunState.COMPLETED
    assert undone(house) == ["orders[1]/y", "orders[1]/x", "caught/p"]
    assert house.effects.order()[-3:] == ["caught/q", "caught/p:compensate", "caught:catch/fix"]


async def test_on_failure_and_finally(house: House) -> None:
    more = {
        "on_failure": {"steps": [step("alert", "effect", params={"gives": "${{ error.code + ' ' + outcome }}"})]},
        "finally": {
            "steps": [step("tidy", "effect", params={"gives": "${{ outcome }}"}), step("then", "effect", ["tidy"])]
        },
    }
    run = await house.run(workflow(does("a"), fails("b", ["a"]), **more))
    assert run.state is RunState.FAILED
    assert house.effects.order() == ["a", "b", "a:compensate", ":on_failure/alert", ":finally/tidy", ":finally/then"]
    house.effects.log.clear()
    run = await house.run(
        workflow(step("a", "process", params={"output": 1}), outputs={"n": "${{ steps.a.output }}"}, **more)
    )
    assert run.state is RunState.COMPLETED
    assert (await house.control.results(run.workflow_id))[1] == {"n": 1}
    assert house.effects.order() == [":finally/tidy", ":finally/then"]
    assert not house.leaks()


async def test_a_finally_that_fails_fails_the_run_and_the_rest_of_it_is_done(house: House) -> None:
    run = await house.run(workflow(step("a", "effect"), **{"finally": {"steps": [fails("x"), step("y", "effect")]}}))
    assert run.state is RunState.FAILED
    assert sorted(house.effects.order()) == [":finally/x", ":finally/y", "a"]


async def test_a_retry_does_again_what_was_undone_and_what_came_after_it(house: House) -> None:
    run = await house.run(
        workflow(
            does("a"), step("b", "effect", ["a"]), step("c", "effect", ["b"], params={"fails_first": 1}), retries=0
        )
    )
    assert run.state is RunState.FAILED
    await house.control.retry(run.workflow_id, actor="test")
    run = await house.ended(run.workflow_id)
    assert run.state is RunState.COMPLETED
    assert house.effects.order() == ["a", "b", "c", "a:compensate", "a", "b", "c"]


SAGA = workflow(
    does("a", undo={"takes_s": 1.0, "gives": "${{ output }}"}, takes_s=1.0, gives="A"),
    {
        "name": "g",
        "depends_on": ["a"],
        "steps": [does("x", undo={"takes_s": 1.0}, takes_s=1.0), does("y", undo={"takes_s": 1.0})],
    },
    fails("b", ["g"], takes_s=1.0),
    on_failure={"steps": [step("alert", "effect", params={"takes_s": 1.0, "gives": "${{ error.message }}"})]},
    **{"finally": {"steps": [step("tidy", "effect", params={"takes_s": 1.0})]}},
)


@pytest.mark.parametrize("at_s", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5])
async def test_a_crash_at_any_point_changes_nothing(house: House, at_s: float) -> None:
    accepted = await house.submit(SAGA)
    await asyncio.sleep(at_s)
    await house.restart()
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.FAILED
    compensated = [one.step for one in house.receipts(run.workflow_id) if one.kind == "step.compensated"]
    assert compensated == ["g/x", "g/y", "a"]
    completed = [one.step for one in house.receipts(run.workflow_id) if one.kind == "step.completed"]
    assert completed[-2:] == [":on_failure/alert", ":finally/tidy"]
    assert len(completed) == len(set(completed))
    assert (await house.verify()).valid
    assert not house.leaks()


async def test_a_retry_does_again_what_was_undone_inside_of_steps_under_other_keys(house: House) -> None:
    each = does("each", ["a"], rest={"foreach": {"in": [1, 2], "concurrency": 1}})
    group = {"name": "g", "depends_on": ["each"], "steps": [does("x"), step("kept", "effect")]}
    accepted = await house.submit(workflow(step("a", "effect"), each, group, step("ask", "wait_for", ["g"], params=GO)))
    for _ in range(2):
        await asyncio.sleep(10)
        await house.control.cancel(accepted.workflow_id, actor="anna")
        run = await house.ended(accepted.workflow_id)
        assert run.steps[:3] == [StepState.COMPLETED, StepState.COMPENSATED, StepState.COMPENSATED]
        await house.restart()
        await house.control.retry(accepted.workflow_id, actor="anna")
    await asyncio.sleep(10)
    await house.control.signals.signal(accepted.workflow_id, "go", 1, actor="anna")
    run = await house.ended(accepted.workflow_id)
    assert run.state is RunState.COMPLETED, run.failure
    keys = [one.key.partition("/")[2] for one in house.effects.log]
    assert keys.count("a") == 1
    assert keys.count("g/kept") == 3, "it was not undone: the same key, and whoever knows it does nothing"
    once = ["each[0]", "each[1]", "g/x"]
    undo = ["g/x:compensate", "each[1]:compensate", "each[0]:compensate"]
    assert [key for key in keys if key not in ("a", "g/kept")] == [
        *once,
        *undo,
        *[f"{key}~2" for key in (*once, *undo)],
        *[f"{key}~3" for key in once],
    ]
    assert (await house.verify()).valid


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_compensations_run_in_the_reverse_order_of_completions(data: st.DataObject) -> None:
    """Any tree of groups, any durations, a crash anywhere: each completed step is compensated once, the last first."""

    def block(depth: int, names: str) -> list[Any]:
        steps: list[Any] = []
        for index in range(data.draw(st.integers(1, 3))):
            after = [steps[-1]["name"]] if steps and data.draw(st.booleans()) else []
            name = f"{names}{index}"
            if depth and data.draw(st.booleans()):
                steps.append({"name": name, "depends_on": after, "steps": block(depth - 1, name)})
            else:
                steps.append(does(name, after, takes_s=data.draw(st.integers(0, 3)) / 1.0, undo={"takes_s": 0.5}))
        return steps

    steps = block(2, "s")
    crash_s = data.draw(st.floats(0.1, 20))

    async def scenario() -> None:
        house = await House().start()
        accepted = await house.submit(
            workflow(*steps, step("end", "wait", params={"duration": "5s"}), fails("boom", ["end"]))
        )
        await asyncio.sleep(crash_s)
        await house.restart()
        run = await house.ended(accepted.workflow_id)
        assert run.state is RunState.FAILED
        receipts = house.receipts(run.workflow_id)
        ending = next(one.seq for one in receipts if one.kind == "workflow.ending")
        groups = {one.step for one in receipts if one.kind == "step.opened"} | {"end"}
        done = [
            one.step for one in receipts if one.kind == "step.completed" and one.seq < ending and one.step not in groups
        ]
        assert [one.step for one in receipts if one.kind == "step.compensated"] == done[::-1]
        assert not house.leaks()
        await house.engine.stop()

    in_virtual_time(scenario)


async def test_a_failure_in_the_middle_of_a_compensation_inside_loses_nothing(house: House) -> None:
    """While a group that is caught undoes what it did, the run fails because of another step."""
    inside = [does("a", undo={"takes_s": 3.0}), does("b", ["a"], undo={"takes_s": 3.0}), fails("c", ["b"])]
    caught = {"name": "g", "steps": inside, "catch": {"steps": [step("note")]}}
    late = step("late", "effect", params={"takes_s": 1.0, "fails": True})
    run = await house.run(workflow(caught, late))
    assert run.state is RunState.FAILED
    assert undone(house) == ["g/b", "g/a"]
    assert (await house.verify()).valid
    assert not house.leaks()
