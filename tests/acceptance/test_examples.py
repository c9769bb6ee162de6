"""The five larger examples, as their READMEs say: real files, databases, requests, people; nothing happens twice."""

import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from knhk.testing import cases
from tests.acceptance.server import ROOT, Server, free_port

EXAMPLES = ROOT / "examples"
NAMES = ("etl", "order", "sales_report", "reminders", "incident")
Started = Callable[[str], Server]


def eventually(what: Callable[[], Any], timeout_s: float = 60) -> Any:
    """What it gives, once that is something."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def rows(file: Path, statement: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(file, timeout=30) as database:
        return database.execute(statement).fetchall()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    """Starts a server in a copy of an example, with the example's configuration."""
    servers: list[Server] = []

    def started(name: str) -> Server:
        directory = tmp_path / name
        shutil.copytree(EXAMPLES / name, directory)
        servers.append(Server(directory, **yaml.safe_load((directory / "config.yaml").read_text())))
        servers[-1].variables["KNHK_WEBHOOK_ALARM"] = "s3cret"
        return servers[-1].start()

    yield started
    for server in servers:
        server.close()


@pytest.mark.parametrize("name", NAMES)
def test_its_own_tests_pass(name: str) -> None:
    file, descriptor = cases.load(EXAMPLES / name / "workflow.test.yaml")
    assert {one.name: one.problems for one in cases.perform(file, descriptor)} == {one.name: [] for one in file.tests}


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_readme_and_is_listed(name: str) -> None:
    readme = (EXAMPLES / name / "README.md").read_text()
    assert f"[{name}/]({name}/README.md)" in (EXAMPLES / "README.md").read_text()
    commands = re.findall(r"```sh\n(.*?)```", readme, re.S)
    assert f"cd examples/{name}" in commands[0]
    for link in re.findall(r"\]\((?!http)([^)#]+)", readme):
        assert (EXAMPLES / name / link).exists(), link


def test_etl(start: Started) -> None:
    """Loaded twice, with a kill between and in the middle, each order is there once."""
    server = start("etl")
    text = (server.directory / "workflow.yaml").read_text()
    first = server.submit(text)
    server.kill()
    server.start()
    server.wait_for(first, timeout_s=60)
    again = server.submit(text)
    server.wait_for(again, timeout_s=60)
    outputs = server.status(again, verbose=True)["outputs"]
    assert (outputs["read"], outputs["bad"]) == (240, 4)
    counts = rows(
        server.directory / "warehouse.db", "SELECT country, count(*), sum(cents) FROM orders GROUP BY country"
    )
    assert sum(count for _, count, _ in counts) == 236
    assert {(one["country"], one["orders"], one["cents"]) for one in outputs["totals"]} == set(counts)
    bad = (server.directory / "bad_lines.txt").read_text().splitlines()
    assert [line.split(":")[1].strip() for line in bad] == ["A-017", "A-093", "A-140", "A-205"]
    assert server.stop() == 0
    assert server.verify()["valid"]


def test_order(start: Started) -> None:
    """One is rejected, one is cancelled, one finds no pots: all is as before. One is shipped."""
    server = start("order")
    shop = server.directory / "shop.db"
    server.wait_for(server.submit((server.directory / "open_shop.yaml").read_text()), timeout_s=60)
    text = (server.directory / "workflow.yaml").read_text()
    stock = rows(shop, "SELECT * FROM stock ORDER BY sku")

    def order(number: str, **more: Any) -> str:
        given = {"descriptor": text, "inputs": {"order": number, **more}}
        return str(server.client.post("/workflows", json=given).json()["workflow_id"])

    def waits(number: str) -> None:
        eventually(lambda: any(one["kind"] == "approval" for one in server.status(number)["waiting_on"]))

    rejected, cancelled = order("B-1"), order("B-2")
    pots = order("B-3", items=[{"sku": "tea", "count": 1}, {"sku": "pot", "count": 2}])
    waits(rejected)
    waits(cancelled)
    server.kill()
    server.start()
    server.cli("workflow", "reject", rejected, "--as", "ben")
    assert server.client.post(f"/workflows/{cancelled}/cancel").is_success
    for one, state in ((rejected, "failed"), (cancelled, "cancelled"), (pots, "failed")):
        server.wait_for(one, state, timeout_s=60)
    assert rows(shop, "SELECT * FROM stock ORDER BY sku") == stock
    assert rows(shop, "SELECT order_id, cents, state FROM payments ORDER BY order_id") == [
        ("B-1", 2100, "refunded"),
        ("B-2", 2100, "refunded"),
    ]
    undone = server.client.get(f"/workflows/{rejected}/receipts").json()["receipts"]
    steps = [one["step"] for one in undone if one["kind"] == "step.compensated"]
    assert steps == ["charge", "reserve[1]", "reserve[0]"]
    good = order("B-4")
    waits(good)
    server.cli("workflow", "approve", good, "--as", "anna")
    server.wait_for(good, timeout_s=60)
    assert rows(shop, "SELECT * FROM shipments") == [("B-4", "1 Main Street")]
    assert rows(shop, "SELECT count FROM stock ORDER BY sku") == [(4,), (1,), (8,)]
    assert server.stop() == 0
    assert server.verify()["valid"]


def test_sales_report(start: Started) -> None:
    """The schedule fires by itself; each day is in the books once, with its page."""
    server = start("sales_report")
    text = (server.directory / "workflow.yaml").read_text()
    server.wait_for(server.submit(text.replace("2026-11-23", "2026-11-22")), timeout_s=60)
    often = text.replace('cron: "30 2 * * *"', 'cron: "* * * * * *"').replace("${{ trigger.time }}", "2026-11-23")
    assert server.client.put("/definitions/sales-report", content=often).status_code == 201
    page = server.directory / "reports" / "2026-11-23.md"
    eventually(page.exists)
    server.client.delete("/definitions/sales-report")
    days = dict(rows(server.directory / "books.db", "SELECT day, cents FROM days"))
    assert list(days) == ["2026-11-22", "2026-11-23"]
    assert f"The day before: {days['2026-11-22'] / 100:,.2f}." in page.read_text()
    assert f"{days['2026-11-23'] / 100:,.2f}" in page.read_text()
    none = server.submit(text.replace("2026-11-23", "1999-01-01"))
    assert server.wait_for(none, "failed")["failure"]["code"] == "SALES-NONE"
    assert rows(server.directory / "books.db", "SELECT day FROM missing") == [("1999-01-01",)]
    assert server.stop() == 0
    assert server.verify()["valid"]


def test_reminders(start: Started) -> None:
    """A thousand are sent, each once although the server dies, and never more than 200 start in a second."""
    server = start("reminders")
    outbox = server.directory / "outbox"
    definition = (server.directory / "reminder.yaml").read_text()
    assert server.client.put("/definitions/reminder", content=definition).status_code == 201
    parent = server.submit((server.directory / "workflow.yaml").read_text())
    eventually(lambda: outbox.exists() and len(list(outbox.iterdir())) > 100)
    server.kill()
    server.start()
    server.wait_for(parent, timeout_s=120)
    assert server.status(parent, verbose=True)["outputs"] == {"sent": 1000}
    sent = Counter(message.read_text().splitlines()[0] for message in outbox.glob("*.eml"))
    assert (len(sent), set(sent.values())) == (1000, {1})
    listed = server.client.get("/workflows", params={"name": "reminder", "limit": 1000}).json()["workflows"]
    starts = sorted(one["started_at"] for one in listed)
    assert len(starts) == 1000
    assert all(_seconds(later) - _seconds(first) >= 0.99 for first, later in zip(starts, starts[200:], strict=False))
    assert server.stop() == 0


def _seconds(time_of_day: str) -> float:
    hours, minutes, seconds = time_of_day[11:].rstrip("Z").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def test_incident(start: Started, tmp_path: Path) -> None:
    """An alarm is one run, a restart helps; where none does, somebody takes over. The server dies in the middle."""
    server = start("incident")
    text = (server.directory / "workflow.yaml").read_text()
    chats = {}
    services = []
    for needed in (2, 99):
        port, chat = free_port(), tmp_path / f"chat-{needed}"
        with chat.open("w") as log:
            command = [sys.executable, str(server.directory / "service.py"), str(port), str(needed)]
            services.append(subprocess.Popen(command, stdout=log))
        chats[port] = chat
    try:
        curable, hopeless = chats
        text = text.replace("default: 10s", "default: 300ms").replace("default: 15m", "default: 1s")
        for port, number in ((curable, "I-1"), (hopeless, "I-2")):
            put = server.client.put("/definitions/incident", content=text.replace("8901", str(port)))
            assert put.status_code in (200, 201), put.text
            alarm = [sys.executable, "alarm.py", number, server.api]
            for _ in range(2):
                subprocess.run(alarm, cwd=server.directory, env=server.environment(), check=True, timeout=60)
            if number == "I-1":
                server.kill()
                server.start()
                eventually((server.directory / "reports" / "I-1.md").exists)
        eventually(lambda: "who takes over" in chats[hopeless].read_text())
        server.cli("event", "publish", "taken-over", "--correlate", "I-2", "--value", '{"by": "Ada"}', "-o", "json")
        page = server.directory / "reports" / "I-2.md"
        eventually(page.exists)
        assert "taken over by Ada" in page.read_text()
        for port, chat in chats.items():
            eventually(lambda chat=chat: "is over: completed" in chat.read_text())
            assert chat.read_text().count("is in trouble") in (1, 2), port  # once more if it died in between
        runs = server.client.get("/workflows", params={"name": "incident"}).json()["workflows"]
        assert len(runs) == 2
        assert server.stop() == 0
        assert server.verify()["valid"]
    finally:
        for service in services:
            service.kill()
            service.wait(timeout=20)
