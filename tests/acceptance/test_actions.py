"""The actions that reach outside, on a real server: through HTTP and the command line, with kill -9 in the middle."""

import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.server import Server

STEPS = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: reach-out}}
spec:
  inputs: {{name: {{type: string}}}}
  steps:
    - {{name: make, action: sql, params: {{connection: shop, statement: "CREATE TABLE IF NOT EXISTS t (name TEXT)"}}}}
    - name: keep
      action: sql
      depends_on: [make]
      params:
        connection: shop
        statement: INSERT INTO t (name) VALUES (:name) RETURNING name
        values: {{name: "${{{{ inputs.name }}}}"}}
    - {{name: say, action: shell, params: {{command: [echo, "-n", "${{{{ inputs.name }}}}"]}}}}
    - {{name: add, action: python, params: {{callable: "tests.integration.python_jobs:add", args: {{a: 20, b: 22}}}}}}
  outputs:
    kept: ${{{{ steps.keep.output.rows[0].name }}}}
    said: ${{{{ steps.say.output.stdout }}}}
    sum: ${{{{ steps.add.output.sum }}}}
""".format()


@pytest.fixture
def reaching(tmp_path: Path) -> Iterator[Server]:
    server = Server(
        tmp_path,
        actions={
            "modules": ["tests.acceptance.crash_actions"],
            "shell": {"commands": ["echo"]},
            "python": {"callables": ["tests.integration.python_jobs:*"]},
            "sql": {"connections": [{"name": "shop", "url": f"sqlite:///{tmp_path}/shop.db"}]},
        },
    )
    try:
        yield server
    finally:
        server.close()


def test_a_workflow_that_reaches_outside(reaching: Server, tmp_path: Path) -> None:
    reaching.start()
    (tmp_path / "steps.yaml").write_text(STEPS)
    hostile = "'; DROP TABLE t; -- $(id) `id`"
    done = reaching.cli("workflow", "submit", "steps.yaml", "-i", f'name="{hostile}"', "--wait", "60s", "-o", "json")
    assert done["outputs"] == {"kept": hostile, "said": hostile, "sum": 42}
    listed = reaching.client.get("/actions").json()["actions"]
    assert {one["name"] for one in listed if one["allowed"]} >= {"sql", "shell", "python"}
    assert reaching.stop() == 0
    assert reaching.verify()["valid"]


def test_the_command_line_lists_actions_as_the_configuration_allows_them(reaching: Server) -> None:
    config = str(reaching.config)
    found = {one["name"]: one for one in reaching.cli("actions", "list", "-c", config, "-o", "json")["actions"]}
    assert (found["sql"]["guarantee"], found["sql"]["allowed"]) == ("exactly-once", True)
    assert (found["shell"]["guarantee"], found["shell"]["allowed"]) == ("at-least-once", True)
    assert reaching.cli("actions", "show", "shell", "-c", config, "-o", "json")["params_schema"]["properties"][
        "command"
    ]
    reaching.cli("actions", "show", "shel", code=4)


CHARGE = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: charge}}
spec:
  retries: 5
  steps: [{{name: charge, action: test.charge_then_die, params: {{url: "{url}", id: {number}}}}}]
"""


def test_kill_between_the_effect_and_its_receipt_does_not_repeat_the_effect(reaching: Server, tmp_path: Path) -> None:
    file = tmp_path / "bank.db"
    bank = sqlite3.connect(file, isolation_level=None)
    bank.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, charges INTEGER NOT NULL DEFAULT 0)")
    bank.executemany("INSERT INTO accounts (id) VALUES (?)", [(number,) for number in range(3)])
    for number in range(3):
        reaching.start()
        workflow_id = reaching.submit(CHARGE.format(url=f"sqlite:///{file}", number=number))
        assert reaching.process is not None
        assert reaching.process.wait(timeout=60) == -9
        (charges,) = bank.execute("SELECT charges FROM accounts WHERE id = ?", (number,)).fetchone()
        assert charges == 1  # the effect is there, and its receipt is not
        reaching.start()
        reaching.wait_for(workflow_id)
        reaching.stop()
    assert [row[0] for row in bank.execute("SELECT charges FROM accounts ORDER BY id")] == [1, 1, 1]
    bank.close()
    assert reaching.verify()["valid"]


LONG = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: long}}
spec: {{steps: [{{name: nap, action: shell, params: {{command: ["{python}", "-c", "{program}"], timeout: 10m}}}}]}}
"""


def test_programs_end_with_a_cancelled_run_and_with_a_killed_server(tmp_path: Path) -> None:
    server = Server(tmp_path, actions={"shell": {"commands": [sys.executable]}})
    pid = tmp_path / "pid"
    program = f"import os, time; open('{pid}', 'a').write(str(os.getpid()) + chr(10)); time.sleep(600)"
    try:
        server.start()
        workflow_id = server.submit(LONG.format(python=sys.executable, program=program))
        first = _pids(pid, 1)[0]
        server.client.post(f"/workflows/{workflow_id}/cancel").raise_for_status()
        _gone(first)
        server.submit(LONG.format(python=sys.executable, program=program))
        second = _pids(pid, 2)[1]
        server.kill()
        _gone(second)
    finally:
        server.close()


def _pids(file: Path, count: int, within_s: float = 60.0) -> list[int]:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = file.read_text().split() if file.exists() else []
        if len(found) >= count:
            return [int(one) for one in found]
        time.sleep(0.05)
    raise AssertionError(f"{count} programs have not begun")


def _gone(pid: int, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"{pid} is still there"
        time.sleep(0.05)
