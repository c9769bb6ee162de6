"""knhk.testing: workflows run in memory, in virtual time, with mocks."""

import time
from pathlib import Path
from typing import Any

import pytest

import knhk
from knhk import testing
from knhk.domain.errors import InvalidDescriptor, InvalidInputs
from tests.acceptance.server import ROOT


def orders() -> knhk.Workflow:
    flow = knhk.Workflow("orders", retries=3, timeout="30d")
    order = flow.input("order", type="string")
    charge = flow.step("charge", "shop.charge", {"order": order, "amount": 14})
    nap = flow.step("nap", "wait", {"duration": "7d"}, depends_on=[charge])
    flow.step(
        "ship", "http", {"url": f"https://shop.example/{order}", "method": "POST"}, depends_on=[nap], queue="post"
    )
    flow.output("receipt", charge.output.receipt)
    return flow


def test_weeks_take_no_time_and_calls_are_recorded() -> None:
    begun = time.monotonic()
    mocks = {"shop.charge": testing.sequence(testing.retries("busy", after_s=60), {"receipt": "r-7"}), "http": {}}
    result = testing.run(orders(), {"order": "B-1"}, actions=mocks)
    assert time.monotonic() - begun < 30
    result.assert_state("completed")
    assert result.outputs == {"receipt": "r-7"}
    assert 7 * 86_400 + 60 <= result.elapsed_s < 7 * 86_400 + 120
    first, second = result.calls("shop.charge")
    assert (first.attempt, second.attempt, first.idempotency_key) == (1, 2, second.idempotency_key)
    assert second.at_s - first.at_s >= 60
    (sent,) = result.calls(step="ship")
    assert sent.params["url"] == "https://shop.example/B-1"
    assert result.step("charge")["attempts"] == 2
    assert result.kinds("charge") == ["step.retrying", "step.completed"]
    assert result.kinds()[-1] == "workflow.completed"


def test_the_same_seed_gives_the_same_history() -> None:
    mocks = {"shop.charge": testing.sequence(testing.retries(), testing.retries(), {"receipt": 1}), "http": {}}
    histories = [
        [(one["kind"], one["at_ns"]) for one in testing.run(orders(), {"order": "a"}, actions=mocks, seed=5).receipts]
        for _ in range(2)
    ]
    assert histories[0] == histories[1]


@pytest.mark.parametrize(
    ("mock", "code"),
    [
        (testing.fails("no", code="SHOP-NO"), "SHOP-NO"),
        (knhk.ActionFailed("no", code="SHOP-NO"), "SHOP-NO"),
        (lambda call: testing.fails(call.params["order"], code="SHOP-NO"), "SHOP-NO"),
        (RuntimeError("boom"), "KNHK-ACTION-ERROR"),
        (testing.returns(object()), "KNHK-STEP-OUTPUT"),
    ],
)
def test_failures(mock: Any, code: str) -> None:
    result = testing.run(orders(), {"order": "B-1"}, actions={"shop.charge": mock, "http": {}})
    assert result.failure is not None
    assert (result.state, result.failure["code"], result.failure["step"]) == ("failed", code, "charge")
    with pytest.raises(AssertionError, match="is failed, not completed"):
        result.assert_state("completed")


def test_what_reaches_outside_must_be_mocked() -> None:
    result = testing.run(orders(), {"order": "B-1"}, actions={"shop.charge": {"receipt": 1}})
    assert result.failure is not None
    assert (result.failure["code"], result.failure["step"]) == ("KNHK-TEST-UNMOCKED", "ship")


def test_a_step_can_be_mocked_whatever_its_action() -> None:
    async def ship(call: testing.Call) -> dict[str, str]:
        return {"sent": call.params["url"]}

    result = testing.run(
        orders(), {"order": "B-1"}, steps={"ship": ship, "nap": 1}, actions={"shop.charge": {"receipt": 1}}
    )
    result.assert_state("completed")
    assert result.elapsed_s < 60  # the nap did not take place
    assert result.step("ship")["output"] == {"sent": "https://shop.example/B-1"}


def test_actions_of_a_module_run_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "custom_action"))
    result = testing.run(ROOT / "examples" / "custom_action" / "workflow.yaml", {"order": "B-1"}, modules=["shop"])
    result.assert_state("completed")


async def test_in_a_test_that_has_a_loop_of_its_own() -> None:
    given: dict[str, Any] = {"actions": {"shop.charge": {"receipt": 1}, "http": {}}}
    assert testing.run(orders(), {"order": "x"}, **given).state == "completed"
    assert (await testing.run_async(orders(), {"order": "x"}, **given)).state == "completed"


def test_a_descriptor_that_is_wrong_is_refused() -> None:
    with pytest.raises(InvalidDescriptor):
        testing.run("apiVersion: knhk/v1\nkind: Workflow\n")
    with pytest.raises(InvalidInputs):
        testing.run(orders(), {"order": 1}, actions={"shop.charge": 1})


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_can_be_rehearsed(file: Path) -> None:
    assert testing.run(file).state in ("completed", "failed")
