"""What the Python worker tells of an outcome, and which servers it talks to."""

from typing import Any

import pytest

from knhk.actions.registry import Cancelled, Failed, Outcome, RetryLater, Succeeded, WaitUntil
from knhk.domain.errors import InvalidParameter
from knhk.sdk.answers import checked_url
from knhk.sdk.worker import Offer, _report

OFFER = Offer("17", 60.0, "wf-1", "orders", "a", 2, "wf-1/a", "render", {"n": 1}, at_ns=5)


@pytest.mark.parametrize(
    ("outcome", "verb", "told"),
    [
        (Succeeded({"a": 1}), "complete", {"output": {"a": 1}}),
        (WaitUntil(99, 1), "complete", {"output": 1, "wait_until_ns": 99}),
        (Failed("X", "no", "g"), "fail", {"code": "X", "message": "no", "guard": "g", "retryable": False}),
        (RetryLater("X", "no", 5), "fail", {"code": "X", "message": "no", "retryable": True, "after": "5ns"}),
        (Cancelled(), "fail", {"code": "KNHK-ACTION-CANCELLED", "retryable": True, "after": None}),
    ],
)
def test_what_is_told_of_an_outcome(outcome: Outcome, verb: str, told: dict[str, Any]) -> None:
    found, body = _report(OFFER, outcome)
    assert found == verb
    assert {**body, **told, "token": "17", "workflow_id": "wf-1", "step": "a"} == body


def test_an_offer_is_an_invocation() -> None:
    invocation = OFFER.invocation()
    assert (invocation.idempotency_key, invocation.attempt, invocation.params) == ("wf-1/a", 2, {"n": 1})
    assert invocation.now_ns == 5


def test_servers() -> None:
    assert checked_url("http://127.0.0.1:8080/") == ("http://127.0.0.1:8080", False)
    assert checked_url("https://knhk.example.com") == ("https://knhk.example.com", True)
    for wrong in ("127.0.0.1:8080", "ftp://x", "http://", ""):
        with pytest.raises(InvalidParameter):
            checked_url(wrong)
