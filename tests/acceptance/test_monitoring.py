"""The service level and its alerts on a real server, over kill -9: counted once, told once, resolved once."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.acknowledged import until
from tests.acceptance.server import Server, free_port
from tests.services.alert_receivers import HttpReceiver, MailReceiver, check_pagerduty, check_slack

GOOD = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: good}
spec:
  steps: [{name: a, action: process, params: {output: 1}}]
"""
BAD = GOOD.replace("good", "bad").replace("process, params: {output: 1}", "fail, params: {message: no}")


@pytest.fixture
def receivers() -> Iterator[dict[str, HttpReceiver]]:
    made = {"pagerduty": HttpReceiver(check_pagerduty), "slack": HttpReceiver(check_slack), "webhook": HttpReceiver()}
    yield made
    for one in made.values():
        one.close()


@pytest.fixture
def mail() -> Iterator[MailReceiver]:
    made = MailReceiver(free_port())
    yield made
    made.close()


@pytest.fixture
def server(tmp_path: Path, receivers: dict[str, HttpReceiver], mail: MailReceiver) -> Iterator[Server]:
    made = Server(
        tmp_path,
        monitoring={
            "sla_target": 50.0,  # so that a few good runs make up for a few bad ones
            "latency_target": "0s",
            "min_failures": 2,
            "check_interval": "200ms",
            "resolve_after": "300ms",
            "alert_channels": [
                {"type": "pagerduty", "service_key": "${PAGERDUTY_KEY}", "url": receivers["pagerduty"].url},
                {"type": "slack", "webhook_url": "${SLACK_WEBHOOK}"},
                {"type": "email", "addresses": ["ops-team@company.com"]},
                {"type": "webhook", "name": "boss", "webhook_url": receivers["webhook"].url, "after": "1h"},
            ],
            "smtp": {"host": "127.0.0.1", "port": mail.port},
        },
    )
    made.variables |= {"PAGERDUTY_KEY": "key-17", "SLACK_WEBHOOK": receivers["slack"].url, "KNHK_OPERATIONS": made.ops}
    yield made
    made.close()


def ask(server: Server, path: str) -> dict[str, Any]:
    """The answer to a GET on the operations port, which says 503 while a busy machine holds the event loop up."""
    deadline = time.monotonic() + 30
    while (answer := httpx.get(f"{server.ops}{path}", timeout=30)).status_code == 503:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def submit(server: Server, descriptor: str, count: int) -> None:
    for _ in range(count):
        answer = server.client.post("/workflows?wait=30s", content=descriptor)
        assert answer.status_code == 200, answer.text


def test_every_end_is_counted_once_whatever_is_killed_when(server: Server) -> None:
    total = failed = 0
    for pause_s in (0.0, 0.3, 5.5):  # before, around and after what is stored every 5 seconds
        server.start()
        submit(server, GOOD, 7)
        submit(server, BAD, 3)
        total, failed = total + 10, failed + 3
        time.sleep(pause_s)
        server.kill()
    server.start()
    until(lambda: ask(server, "/sla")["windows"]["6h"]["workflows"] >= total)
    time.sleep(0.3)
    windows = ask(server, "/sla")["windows"]
    for window in ("6h", "3d", "30d"):
        assert (windows[window]["workflows"], windows[window]["failed"]) == (total, failed)
        assert windows[window]["error_percent"] == pytest.approx(30.0)
    assert windows["6h"]["p50_s"] < 1
    assert 0 < windows["1h"]["uptime_percent"] < 100
    text = httpx.get(f"{server.ops}/metrics").text
    assert 'knhk_slo_burn_rate{slo="success",window="6h"} 0.6' in text


def test_an_alert_is_told_once_over_a_crash_and_resolved_once(
    server: Server, receivers: dict[str, HttpReceiver], mail: MailReceiver
) -> None:
    pagerduty, slack = receivers["pagerduty"], receivers["slack"]
    server.start()
    submit(server, GOOD, 1)
    submit(server, BAD, 4)
    until(lambda: pagerduty.bodies and slack.bodies and mail.messages)
    until(lambda: len(ask(server, "/alerts")["firing"][0]["told"]) == 3)
    server.kill()
    server.start()
    time.sleep(2)
    shown = server.cli("alerts", "list", "-o", "json")
    assert [one["name"] for one in shown["firing"]] == ["slo.success"]
    assert [one["channel"] for one in shown["channels"]] == ["pagerduty", "slack", "email", "boss"]
    assert (len(pagerduty.bodies), len(slack.bodies), len(mail.messages)) == (1, 1, 1)
    submit(server, GOOD, 10)
    until(lambda: len(pagerduty.bodies) == len(slack.bodies) == len(mail.messages) == 2)
    server.stop()
    server.start()
    time.sleep(1)
    assert (len(pagerduty.bodies), len(slack.bodies), len(mail.messages)) == (2, 2, 2)
    trigger, resolve = pagerduty.bodies
    assert (trigger["event_action"], resolve["event_action"]) == ("trigger", "resolve")
    assert trigger["routing_key"] == "key-17"
    assert trigger["dedup_key"] == resolve["dedup_key"]
    assert trigger["payload"]["source"] == "test-node"
    assert "Workflows fail" in slack.bodies[0]["text"]
    assert mail.messages[1]["In-Reply-To"] == mail.messages[0]["Message-ID"]
    assert not receivers["webhook"].bodies  # escalation: it was over long before the hour
    assert not [one.refused for one in receivers.values() if one.refused]
    log = server.log.read_text()
    assert "secret-part" not in log
    assert "key-17" not in log


def test_a_channel_that_is_down_is_told_after_all_and_slows_nothing(
    server: Server, receivers: dict[str, HttpReceiver]
) -> None:
    pagerduty = receivers["pagerduty"]
    pagerduty.status = 500
    server.start()
    submit(server, BAD, 4)
    until(lambda: "channel pagerduty: HTTP 500" in ask(server, "/health/detailed")["checks"]["monitoring"])
    assert ask(server, "/health/detailed")["status"] == "degraded"
    until(lambda: receivers["slack"].bodies)
    submit(server, GOOD, 1)
    server.kill()
    pagerduty.status = 0
    server.start()
    until(lambda: pagerduty.bodies)
    until(lambda: ask(server, "/health/detailed")["checks"]["monitoring"] == "ok")
    assert len(receivers["slack"].bodies) == 1


def test_silences_and_tests_by_the_command_line(server: Server, receivers: dict[str, HttpReceiver]) -> None:
    server.start()
    silence = server.cli("alerts", "silence", "slo.*", "--for", "1h", "--comment", "maintenance", "-o", "json")
    submit(server, BAD, 4)
    until(lambda: ask(server, "/alerts")["firing"])
    server.kill()
    server.start()
    time.sleep(1.5)
    shown = server.cli("alerts", "list", "-o", "json")
    assert [one["comment"] for one in shown["silences"]] == ["maintenance"]
    assert not receivers["pagerduty"].bodies
    server.cli("alerts", "unsilence", silence["id"])
    until(lambda: receivers["pagerduty"].bodies)
    server.cli("alerts", "unsilence", "nonsense", code=4)
    tested = server.cli("alerts", "test", "boss", "-o", "json")
    assert tested == {"boss": "ok"}
    assert [one["alerts"][0]["status"] for one in receivers["webhook"].bodies] == ["firing", "resolved"]
    receivers["webhook"].status = 403
    assert server.cli("alerts", "test", "-o", "json", code=1)["boss"] == "HTTP 403: ok"
    server.cli("alerts", "test", "nobody", code=4)
    server.cli("alerts", "silence", "x", "--for", "soon", code=2)
    found = server.cli("sla", "status", "-o", "json", code=1)  # the promise is missed
    assert [one["name"] for one in found["objectives"] if not one["met"]] == ["success"]
    assert server.cli("sla", "status", code=1) == {}
    server.cli("alerts", "list")
