"""A server that sends to a real OTLP receiver: the trace of a run with retries, passed on, over a restart."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from knhk.domain import trace_context
from knhk.domain.identifier import parse
from tests.acceptance.acknowledged import until
from tests.acceptance.flaky_peer import flaky
from tests.acceptance.server import Server
from tests.services.otlp import Receiver, attributes

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def server(tmp_path: Path, receiver: Receiver) -> Iterator[Server]:
    made = Server(tmp_path, observability={"endpoint": receiver.grpc_url, "export_interval": "200ms"})
    yield made
    made.close()


def charge(url: str, retries: int) -> str:
    return f"""
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: order}}
spec:
  steps:
    - name: price
      action: process
      params: {{output: 42}}
    - name: charge
      action: http
      depends_on: [price]
      params: {{url: "{url}", method: POST}}
      retry: {{max_attempts: {retries}, delay: 10ms}}
"""


def test_the_trace_of_a_run_with_retries_goes_on_over_a_crash(server: Server, receiver: Receiver) -> None:
    with flaky(lambda number: (500, {}, {}) if number != 4 else (200, {}, {})) as peer:
        server.start()
        run = server.submit(charge(peer.url, 3), traceparent=PARENT)
        until(lambda: server.status(run)["state"] == "failed")
        until(lambda: len(receiver.spans()) == 5)  # price, three attempts, the run
        server.kill()
        server.start()
        assert server.client.post(f"/workflows/{run}/retry", json={}).is_success
        server.wait_for(run)
        until(lambda: len(receiver.spans()) == 7)
    number = parse(run)
    spans = receiver.spans()
    assert {span.trace_id for span in spans} == {trace_context.trace_id(number)}
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == 7
    root = by_id[trace_context.run_span_id(number)]
    assert (root.name, attributes(root)["knhk.workflow.state"]) == ("order", "failed")
    assert [link.trace_id.hex() for link in root.links] == [PARENT[3:35]]
    attempts = [by_id[trace_context.attempt_span_id(number, "charge", attempt)] for attempt in (1, 2, 3, 4)]
    assert [attributes(span)["knhk.action"] for span in attempts] == ["http"] * 4
    assert [span.status.code for span in attempts] == [2, 2, 2, 0]
    assert all(span.parent_span_id == root.span_id for span in attempts)
    assert all(one.end_time_unix_nano <= two.start_time_unix_nano for one, two in itertools.pairwise(attempts))
    assert all(root.start_time_unix_nano <= span.start_time_unix_nano for span in spans)
    # Each attempt told the peer its own span.
    told = [headers["traceparent"] for _, _, headers, _ in peer.requests]
    assert told == [f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01" for span in attempts]


def test_sampling_leaves_out_all_but_covenant_o(tmp_path: Path, receiver: Receiver) -> None:
    server = Server(
        tmp_path,
        observability={"endpoint": receiver.http_url, "export_interval": "200ms", "sampling_rate": 0.0},
    )
    try:
        with flaky(lambda _: (200, {}, {})) as peer:
            server.start()
            server.wait_for(server.submit(charge(peer.url, 1)))
            observed = server.submit(charge(peer.url, 1).replace("spec:", "spec:\n  covenant: O"))
            server.wait_for(observed)
            until(lambda: len(receiver.spans()) == 3)
            server.stop()
    finally:
        server.close()
    assert {span.trace_id for span in receiver.spans()} == {trace_context.trace_id(parse(observed))}
    assert [headers["traceparent"][-2:] for _, _, headers, _ in peer.requests] == ["00", "01"]
    assert receiver.metrics()["knhk_workflows_total"]
    assert [record for record in receiver.logs() if record.body.string_value == "ready"]


def test_the_log_level_is_changed_while_the_server_runs(server: Server) -> None:
    server.start()
    server.variables["KNHK_OPERATIONS"] = server.ops
    assert server.cli("logs", "level", "--output", "json") == {"level": "info"}
    assert server.cli("logs", "level", "debug", "-o", "json") == {"level": "debug"}
    assert httpx.get(f"{server.ops}/log-level").json() == {"level": "debug"}
    assert "the log level was changed" in server.log.read_text()
    refused = httpx.put(f"{server.ops}/log-level", json={"level": "chatty"})
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")
    assert (
        httpx.put(f"{server.ops}/log-level", json={"level": "info"}, headers={"origin": "http://x"}).status_code == 403
    )
    server.cli("logs", "level", "nonsense", code=2)
