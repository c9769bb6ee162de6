"""The files in deploy/ with a real Prometheus: rules and their tests, and every panel on a server under load."""

import json
import math
import re
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins

from tests.acceptance.server import ROOT, Server
from tests.services import prometheus
from tests.services.prometheus import Prometheus

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "alerting-rules.yml"
RULES_TEST = DEPLOY / "prometheus" / "alerting-rules-test.yml"
DASHBOARD = DEPLOY / "grafana" / "knhk-dashboard.json"
SCRAPES = 12
METRIC = re.compile(r"\b(?:knhk|process)_[a-z_]+\b|\bup\b(?=\{)")
MIX = """\
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: mix, department: {department}}}
spec:
  steps:
    - {{name: first, action: process, params: {{key: value}}}}
    - {{name: second, action: validate, depends_on: [first]}}
    - {{name: third, action: shop.stock, depends_on: [first]}}
{more}
"""
SLOW = """\
        expr: knhk_recovery_ship_lag_seconds > 60
        for: 1m
"""
QUICK = "        expr: knhk_recovery_ship_lag_seconds > 2\n"
FAILS = """\
    - {name: fourth, action: fail, depends_on: [second], retry: {max_attempts: 2, delay: 1ms}, params: {message: no}}
"""


def panels() -> list[dict[str, Any]]:
    return [one for one in json.loads(DASHBOARD.read_text())["dashboard"]["panels"] if one["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def drive(server: Server, stop: threading.Event) -> None:
    """Workflows of every kind until `stop`: submitted, refused, failing, of several departments."""
    number = 0
    while not stop.is_set():
        number += 1
        more = FAILS if number % 4 == 0 else ""
        server.submit(MIX.format(department=("sales", "research")[number % 2], more=more))
        if number % 10 == 0:
            server.client.post("/workflows", content=b"spec: {}")
        time.sleep(0.02)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a server under load for a while, with the configuration in deploy/.

    What is committed is shipped to the directory `away`; the alert for that is quicker than in deploy/.
    """
    prometheus.program("prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    server = Server(
        directory,
        actions={"modules": ["tests.acceptance.shop_actions"]},
        recovery={"checkpoint_path": str(directory / "checkpoints"), "backup_to": str(directory / "away")},
    )
    stop = threading.Event()
    load = threading.Thread(target=drive, args=(server, stop))
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(directory / RULES.name)]
    rules = RULES.read_text()
    assert SLOW in rules
    (directory / RULES.name).write_text(rules.replace(SLOW, QUICK))
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server.ops_port}"]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    try:
        server.start()
        while (drilled := httpx.post(f"{server.ops}/drill", timeout=120)).status_code == 503:
            time.sleep(0.5)  # a start on a loaded machine may keep the event loop from answering for a moment
        drilled.raise_for_status()
        load.start()
        with prometheus.running(directory / "prometheus.yml", directory / "tsdb") as running:
            deadline = time.monotonic() + 60
            counted = 'count_over_time(up{job="knhk"}[5m])'
            while not (found := running.query(counted)) or float(found[0]["value"][1]) < SCRAPES:
                assert time.monotonic() < deadline, "not scraped often enough"
                time.sleep(0.5)
            running.away = directory / "away"
            yield running
    finally:
        stop.set()
        load.join()
        server.close()


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    tool = prometheus.program("promtool")
    subprocess.run([tool, "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")], check=True, timeout=60)
    subprocess.run([tool, "check", "rules", str(RULES)], check=True, timeout=60)


def test_every_alert_fires_when_it_should() -> None:
    tool = prometheus.program("promtool")
    done = subprocess.run([tool, "test", "rules", RULES_TEST.name], cwd=RULES_TEST.parent, timeout=60, check=False)
    assert done.returncode == 0
    tested = set(re.findall(r'alertname="(\w+)"', RULES_TEST.read_text()))
    assert tested == {rule["alert"] for rule in alerts()}


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    for rule in alerts():
        assert set(rule["annotations"]) == {"summary", "description", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
    guide = {rule["alert"]: rule["annotations"]["summary"] for rule in alerts()[:3]}
    assert guide == {
        "HighErrorRate": "High error rate detected",
        "HighLatency": "P99 latency exceeds 1 second",
        "LowUptime": "Uptime below SLA target",
    }


def test_the_rules_find_their_series_on_a_real_server(scraped: Prometheus) -> None:
    rules = {rule["name"]: rule for rule in scraped.rules()}
    assert set(rules) == {rule["alert"] for rule in alerts()}
    for name, rule in rules.items():
        assert rule["health"] == "ok", f"{name}: {rule.get('lastError')}"
    for rule in alerts():
        for metric in METRIC.findall(rule["expr"]):
            assert scraped.query(f"count({metric})"), f"{rule['alert']}: there is no {metric}"
    assert [alert["state"] for alert in rules["ErrorBudgetBurns"]["alerts"]] == ["firing"]  # every fourth one fails


def test_no_panel_of_the_dashboard_is_empty(scraped: Prometheus) -> None:
    empty = []
    for title, expression in expressions():
        asked = expression.replace("$__rate_interval", "10s").replace("$job", ".*").replace("$instance", ".*")
        assert "$" not in asked, title
        values = [float(sample["value"][1]) for sample in scraped.query(asked)]
        if not values or all(math.isnan(value) for value in values):
            empty.append(f"{title}: {expression}")
    assert not empty, "\n".join(empty)


def test_what_does_not_arrive_any_more_is_an_alert(scraped: Prometheus) -> None:
    """The place that is shipped to is gone, while workflows go on."""

    def firing() -> bool:
        (rule,) = (one for one in scraped.rules() if one["name"] == "ShippingIsBehind")
        return [one["state"] for one in rule["alerts"]] == ["firing"]

    assert not firing()
    assert scraped.away is not None
    scraped.away.rename(scraped.away.with_name("elsewhere"))
    scraped.away.write_text("no directory")
    deadline = time.monotonic() + 90
    while not firing():
        assert time.monotonic() < deadline, scraped.query("knhk_recovery_ship_lag_seconds")
        time.sleep(0.3)
    scraped.away.unlink()
    scraped.away.with_name("elsewhere").rename(scraped.away)
    while firing():
        assert time.monotonic() < deadline + 90, scraped.query("knhk_recovery_ship_lag_seconds")
        time.sleep(0.3)


def test_the_dashboard_is_what_grafana_s_import_takes() -> None:
    """The body of POST /api/dashboards/import: the dashboard, whether to replace one, inputs, and the folder."""
    body = json.loads(DASHBOARD.read_text())
    assert set(body) == {"dashboard", "overwrite", "inputs", "folderUid"}
    dashboard = body["dashboard"]
    assert dashboard["id"] is None
    assert dashboard["uid"] == "knhk"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    assert variables == {"datasource", "job", "instance"}
    for panel in panels():
        assert panel["description"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells


def test_the_dashboard_is_one_to_grafana_s_own_model() -> None:
    """Read into the classes that Grafana generates from its schemas, and written again, nothing is lost or changed."""
    with warnings.catch_warnings():  # it prefers its next format, which Grafana's import does not need
        warnings.simplefilter("ignore", DeprecationWarning)
        from grafana_foundation_sdk.models.dashboard import Dashboard
    register_default_plugins()
    given = json.loads(DASHBOARD.read_text())["dashboard"]
    understood = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
    assert given.pop("id") is None  # Grafana gives it
    assert _without(understood, like=given) == given


def _without(value: Any, *, like: Any) -> Any:
    """A value without the defaults that were added to it."""
    if isinstance(value, dict) and isinstance(like, dict):
        return {key: _without(value[key], like=like[key]) for key in value if key in like}
    if isinstance(value, list) and isinstance(like, list) and len(value) == len(like):
        return [_without(one, like=other) for one, other in zip(value, like, strict=True)]
    return value


def test_every_metric_of_the_dashboard_and_the_rules_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    used = {name for _, expression in expressions() for name in METRIC.findall(expression)}
    used |= {name for rule in alerts() for name in METRIC.findall(rule["expr"])}
    missing = [name for name in sorted(used - {"up"}) if re.sub("_(bucket|sum|count)$", "", name) not in page]
    assert not missing
