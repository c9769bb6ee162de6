"""Tests of workflows: run one in memory, in virtual time, with mocks in place of what reaches outside.

    from knhk import testing

    def test_orders() -> None:
        result = testing.run("orders.yaml", {"order": "B-1"}, actions={"http": {"status": 200, "body": {"id": 7}}})
        result.assert_state("completed")
        assert result.outputs == {"id": 7}
        assert [call.params["url"] for call in result.calls("http")] == ["https://shop.example/orders/B-1"]

The engine is the real one, with retries, timers, timeouts and receipts; only its store is in memory and its clock skips
the time in which nothing happens.
"""

from knhk.testing.mocks import Call, Mock, fails, retries, returns, sequence
from knhk.testing.rehearsal import Result, Signal, run, run_async

__all__ = ["Call", "Mock", "Result", "Signal", "fails", "retries", "returns", "run", "run_async", "sequence"]
