"""The `sql` action on real databases: values are bound, and an effect happens once whatever is repeated or killed."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from knhk.actions.registry import Failed, Invocation, Outcome, RetryLater, Succeeded
from knhk.actions.sql import Databases, action
from knhk.config import SqlOptions
from knhk.config.actions_section import SqlConnection
from knhk.domain.compile import compile_descriptor
from knhk.domain.errors import InvalidDescriptor
from knhk.domain.expressions import Scope
from tests.integration.databases import database_urls

NOW = 1_700_000_000_000_000_000
INSERT = "INSERT INTO orders (id, total) VALUES (:id, :total)"


def options(url: str, **changes: Any) -> SqlOptions:
    return SqlOptions(connections=(SqlConnection(name="shop", url=SecretStr(url)),), **changes)


def invocation(key: str = "wf-1/charge", **params: Any) -> Invocation:
    given = {"connection": "shop", **params}
    return Invocation("wf-1", "orders", "charge", 1, key, given, {}, Scope({}, {}, {}), NOW)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return database_urls(request.param, tmp_path)


@pytest.fixture
def shop(url: str) -> Iterator[Databases]:
    databases = Databases(options(url, max_rows=50))
    schema = "CREATE TABLE orders (id INTEGER PRIMARY KEY, total NUMERIC NOT NULL, note TEXT)"
    made = databases.run(invocation("setup", statement=schema))
    assert isinstance(made, Succeeded), made
    yield databases
    while databases._engines:
        databases._engines.popitem()[1].dispose()


def rows(shop: Databases, statement: str = "SELECT * FROM orders ORDER BY id", **values: Any) -> list[dict[str, Any]]:
    outcome = shop.run(invocation("read", statement=statement, values=values, mode="read"))
    assert isinstance(outcome, Succeeded), outcome
    return list(outcome.output["rows"])


def test_statements_and_their_results(shop: Databases) -> None:
    one = shop.run(invocation("a", statement=INSERT, values={"id": 1, "total": 12}))
    assert one == Succeeded({"rows": [], "row_count": 1})
    many = shop.run(invocation("b", statement=INSERT, values=[{"id": n, "total": n} for n in (2, 3)]))
    assert isinstance(many, Succeeded)
    several = shop.run(
        invocation(
            "c",
            statements=[
                {"statement": "UPDATE orders SET total = total + :by", "values": {"by": 1}},
                {"statement": "SELECT sum(total) AS total, count(*) AS number FROM orders"},
                {"statement": "DELETE FROM orders WHERE id > :id RETURNING id", "values": {"id": 1}},
                {"statement": INSERT, "values": []},
            ],
        )
    )
    assert isinstance(several, Succeeded), several
    updated, counted, deleted, nothing = several.output["results"]
    assert updated["row_count"] == 3
    assert counted["rows"][0]["number"] == 3
    assert float(counted["rows"][0]["total"]) == 20
    assert sorted(row["id"] for row in deleted["rows"]) == [2, 3]
    assert nothing == {"rows": [], "row_count": 0}


HOSTILE = ["'; DROP TABLE orders; --", "\\'", '"', ":id", "%s", "?", "{0}", "\n", "ünï", "1 OR 1=1", "${{ inputs.x }}"]


def test_values_are_never_part_of_a_statement(shop: Databases) -> None:
    statement = "INSERT INTO orders (id, total, note) VALUES (:id, 1, :note)"
    for number, text in enumerate(HOSTILE):
        done = shop.run(invocation(f"h{number}", statement=statement, values={"id": number, "note": text}))
        assert isinstance(done, Succeeded), (text, done)
    assert [row["note"] for row in rows(shop)] == HOSTILE
    assert rows(shop, "SELECT id FROM orders WHERE note = :note", note="1 OR 1=1") == [{"id": 9}]


def test_a_repeated_attempt_gives_the_first_result_and_does_nothing(shop: Databases) -> None:
    first = shop.run(invocation(statement=f"{INSERT} RETURNING id, total", values={"id": 1, "total": 5}))
    assert isinstance(first, Succeeded), first
    again = shop.run(invocation(statement=f"{INSERT} RETURNING id, total", values={"id": 1, "total": 5}))
    assert again == first
    assert len(rows(shop)) == 1
    other = shop.run(invocation("wf-2/charge", statement=INSERT, values={"id": 1, "total": 5}))
    assert isinstance(other, Failed)
    assert other.code == "KNHK-SQL-STATEMENT"


def test_attempts_beside_each_other_take_effect_once(shop: Databases) -> None:
    shop.run(invocation("a", statement=INSERT, values={"id": 1, "total": 0}))
    outcomes: list[Outcome] = []

    def attempt() -> None:
        statement = "UPDATE orders SET total = total + 1 WHERE id = 1"
        outcomes.append(shop.run(invocation("same", statement=statement)))

    threads = [threading.Thread(target=attempt) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [Succeeded({"rows": [], "row_count": 1})] * 5
    assert float(rows(shop)[0]["total"]) == 1


def test_several_statements_are_all_or_nothing(shop: Databases) -> None:
    outcome = shop.run(
        invocation(
            statements=[
                {"statement": INSERT, "values": {"id": 7, "total": 1}},
                {"statement": INSERT, "values": {"id": 7, "total": 1}},
            ]
        )
    )
    assert isinstance(outcome, Failed)
    assert rows(shop) == []
    repaired = shop.run(invocation(statement=INSERT, values={"id": 7, "total": 1}))  # the key was not taken
    assert repaired == Succeeded({"rows": [], "row_count": 1})


# Commits the effect, and dies before anybody can hear of it.
DIES = """
import os, signal, sys
from tests.integration.test_sql_action import INSERT, Databases, invocation, options
import knhk.actions.sql_engine as engine

shop, when = Databases(options(sys.argv[1])), sys.argv[2]
if when == "inside":
    engine.keep = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
shop.run(invocation(statement=INSERT, values={"id": 1, "total": 5}))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["inside", "after"])
def test_a_process_that_dies_around_the_commit(shop: Databases, url: str, when: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    dead = subprocess.run([sys.executable, "-c", DIES, url, when], env=environment, timeout=100, check=False)
    assert dead.returncode == -9
    assert len(rows(shop)) == (0 if when == "inside" else 1)
    again = shop.run(invocation(statement=INSERT, values={"id": 1, "total": 5}))
    assert again == Succeeded({"rows": [], "row_count": 1})
    assert len(rows(shop)) == 1


@pytest.mark.parametrize(
    ("params", "code", "text"),
    [
        ({"statement": "SELEC 1"}, "KNHK-SQL-STATEMENT", "syntax"),
        ({"statement": "SELECT * FROM nowhere"}, "KNHK-SQL-STATEMENT", "nowhere"),
        ({"statement": "SELECT :a", "values": {"b": 1}}, "KNHK-SQL-STATEMENT", "takes ['a'], not ['b']"),
        ({"statement": "SELECT 1", "values": {"b": 1}}, "KNHK-SQL-STATEMENT", "takes no values"),
        ({"statement": "DELETE FROM orders", "mode": "read"}, "KNHK-SQL-STATEMENT", "read"),
        ({"statement": "SELECT 1", "connection": "other"}, "KNHK-ACTION-NOT-ALLOWED", "other"),
        ({}, "KNHK-ACTION-PARAMS", "exactly one"),
        ({"statement": "SELECT 1", "statements": [{"statement": "SELECT 1"}]}, "KNHK-ACTION-PARAMS", "exactly one"),
        ({"statement": "COMMIT"}, "KNHK-ACTION-PARAMS", "transaction"),
        ({"statement": " -- x\n/* y */ ; rollback"}, "KNHK-ACTION-PARAMS", "transaction"),
        ({"statement": "SELECT 1", "timeout": "5m"}, "KNHK-ACTION-PARAMS", "timeout"),
    ],
)
def test_what_goes_wrong(shop: Databases, params: dict[str, Any], code: str, text: str) -> None:
    outcome = shop.run(invocation(**params))
    assert isinstance(outcome, Failed), outcome
    assert (outcome.code, text in outcome.message) == (code, True), outcome


@pytest.mark.parametrize(
    "hidden",
    [
        "{}; COMMIT; SELECT 1 / 0",
        "{}; -- end\nCOMMIT",
        "{} /* ; */; ROLLBACK",
        "SELECT 'it''s; fine'; {}",
        r"SELECT E'a\'' ; COMMIT --'",
        "SELECT $$;$$; COMMIT",
        "SELECT date'2020-01-01' ; COMMIT",
    ],
)
def test_two_statements_in_one_text_are_refused(shop: Databases, hidden: str) -> None:
    outcome = shop.run(invocation(statement=hidden.format("INSERT INTO orders (id, total) VALUES (1, 1)")))
    assert isinstance(outcome, Failed), outcome
    assert outcome.code == "KNHK-ACTION-PARAMS"
    assert rows(shop) == []


@pytest.mark.parametrize("text", ["SELECT 'a;b' AS x;", 'SELECT 1 AS "a;b" -- ; end', "/* ; */ SELECT 1 ; -- x"])
def test_semicolons_that_separate_nothing(shop: Databases, text: str) -> None:
    assert isinstance(shop.run(invocation(statement=text)), Succeeded)


def test_too_many_rows(shop: Databases) -> None:
    series = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) SELECT i FROM n"
    assert len(rows(shop, series.format(50))) == 50
    outcome = shop.run(invocation(statement=series.format(51), mode="read"))
    assert isinstance(outcome, Failed)
    assert outcome.code == "KNHK-SQL-TOO-LARGE"


def test_a_statement_that_takes_too_long_is_broken_off(shop: Databases) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    outcome = shop.run(invocation(statement=endless, mode="read", timeout="300ms"))
    assert isinstance(outcome, RetryLater), outcome
    assert outcome.code == "KNHK-SQL-UNAVAILABLE"
    assert rows(shop) == []  # the connection is as good as before


def test_messages_hide_values_and_passwords(tmp_path: Path) -> None:
    outcome = Databases(options("postgresql+psycopg://u:s3cret@127.0.0.1:1/x")).run(invocation(statement="SELECT 1"))
    assert isinstance(outcome, RetryLater), outcome
    assert "s3cret" not in outcome.message
    for url in ("nosuch://u:s3cret@h/x", "s3cret", "postgresql+nosuch://u:s3cret@h/x"):
        outcome = Databases(options(url)).run(invocation(statement="SELECT 1"))
        assert isinstance(outcome, Failed), outcome
        assert "s3cret" not in outcome.message
    missing = Databases(options(f"sqlite:///{tmp_path}/no/such.db")).run(invocation(statement="SELECT 1"))
    assert isinstance(missing, RetryLater)


def test_a_locked_database_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    shop = Databases(options(f"sqlite:///{file}"))
    assert isinstance(shop.run(invocation("a", statement="CREATE TABLE t (a INTEGER)")), Succeeded)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    outcome = shop.run(invocation("b", statement="INSERT INTO t VALUES (1)", timeout="200ms"))
    assert isinstance(outcome, RetryLater), outcome
    other.execute("ROLLBACK")
    other.close()
    assert isinstance(shop.run(invocation("b", statement="INSERT INTO t VALUES (1)")), Succeeded)


def test_it_states_what_it_guarantees() -> None:
    assert action(options("sqlite:///x.db")).traits.guarantee == "exactly-once"
    assert action(options("postgresql+psycopg://h/x")).traits.guarantee == "exactly-once"
    assert action(options("mysql+pymysql://h/x")).traits.guarantee == "at-least-once"
    assert "names no database" in action(SqlOptions()).traits.disabled


DESCRIPTOR = """
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: injection}}
spec:
  inputs: {{name: {{type: string}}}}
  steps:
    - name: read
      action: sql
      params: {{connection: shop, {params}}}
"""


@pytest.mark.parametrize(
    ("params", "wrong"),
    [
        ("statement: \"SELECT * FROM t WHERE a = '${{ inputs.name }}'\"", "spec.steps[0].params.statement"),
        ('statements: [{statement: "DROP ${{ inputs.name }}"}]', "spec.steps[0].params.statements[0].statement"),
        ('statement: "SELECT :a", values: {a: "${{ inputs.name }}"}', ""),
    ],
)
def test_an_expression_in_a_statement_is_refused_at_submit(params: str, wrong: str) -> None:
    traits = {"sql": action(options("sqlite:///x.db")).traits}
    limits = {"max_bytes": 10_000, "max_steps": 10, "default_timeout_ns": 10**9, "tick_ns": 1}
    text = DESCRIPTOR.format(params=params).encode()
    if not wrong:
        assert compile_descriptor(text, traits, **limits)
        return
    with pytest.raises(InvalidDescriptor) as refused:
        compile_descriptor(text, traits, **limits)
    assert wrong in [problem.path for problem in refused.value.problems]
