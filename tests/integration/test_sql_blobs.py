"""The `sql` action with blobs, on real databases: large results become blobs as they are fetched, blobs are values."""

import asyncio
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knhk.actions.blob_access import AreaAccess
from knhk.actions.registry import Failed, Outcome, Succeeded
from knhk.actions.sql import Databases
from knhk.domain.blob import CSV, JSON, JSON_LINES, OCTETS, TEXT, BlobReference
from knhk.domain.errors import PayloadTooLarge
from knhk.persistence.blob_area import BlobArea
from tests.integration.databases import database_urls
from tests.integration.test_sql_action import invocation, options
from tests.peak_memory import peak_of

MiB = 1 << 20


class Shop:
    """A database with one table, and the blobs beside it."""

    def __init__(self, url: str, path: Path, max_bytes: int) -> None:
        self.sqlite = url.startswith("sqlite")
        self.area = BlobArea(path, inline_bytes=1000, data_bytes=20_000, max_bytes=max_bytes, min_free_bytes=0)
        self.area.open()
        limits = {"max_rows": 50, "max_value_bytes": 10_000, "timeout_ns": 600 * 10**9}
        self.databases = Databases(options(url, **limits), self.area)
        octets = "BLOB" if self.sqlite else "BYTEA"
        self.output("made", statement=f"CREATE TABLE lines (id INTEGER PRIMARY KEY, note TEXT, raw {octets})")

    def run(self, key: str = "wf-1/step", **params: Any) -> Outcome:
        return self.databases.run(invocation(key, **params))

    def output(self, key: str = "wf-1/step", **params: Any) -> dict[str, Any]:
        outcome = self.run(key, **params)
        assert isinstance(outcome, Succeeded), outcome
        return dict(outcome.output)

    def put(self, content: bytes, media_type: str) -> dict[str, Any]:
        return AreaAccess(self.area).put(content, media_type).to_dict()

    def content(self, output: dict[str, Any]) -> str:
        reference = BlobReference.of(output["rows"])
        assert reference is not None, output
        return b"".join(self.area.pieces(reference.digest)).decode()

    def close(self) -> None:
        asyncio.run(self.databases.aclose())


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(database_urls(request.param, tmp_path), tmp_path / "blobs", 64 * MiB)
    yield made
    made.close()


SERIES = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) SELECT i, 'ä' || i AS name FROM n"
)
INSERT = "INSERT INTO lines (id, note) VALUES (:id, :note)"


def test_rows_that_are_too_many_become_a_blob(shop: Shop) -> None:
    assert len(shop.output(statement=SERIES % 50, mode="read")["rows"]) == 50
    output = shop.output(statement=SERIES % 3000, mode="read")
    assert (output["row_count"], output["columns"]) == (3000, ["i", "name"])
    assert output["rows"]["media_type"] == JSON_LINES
    expected = [{"i": number, "name": f"ä{number}"} for number in range(1, 3001)]
    assert [json.loads(line) for line in shop.content(output).splitlines()] == expected
    refused = shop.run(statement=SERIES % 51, mode="read", blob="never")
    assert isinstance(refused, Failed)
    assert refused.code == "KNHK-SQL-TOO-LARGE"
    assert shop.output(statement=SERIES % 2, mode="read", blob="always")["row_count"] == 2


def test_rows_that_weigh_too_much_become_a_blob(shop: Shop) -> None:
    heavy = f"SELECT '{'x' * 9000}' AS text UNION ALL SELECT '{'y' * 9000}' AS text"
    assert len(shop.output(statement=heavy, mode="read")["rows"]) == 2
    both = shop.output(statements=[{"statement": heavy}, {"statement": heavy}, {"statement": "SELECT 1 AS a"}])
    first, second, third = both["results"]
    assert len(first["rows"]) == 2
    assert len(shop.content(second).splitlines()) == 2, "there is no room for more of them in one output"
    assert third["rows"] == [{"a": 1}] or len(shop.content(third).splitlines()) == 1


def test_csv(shop: Shop) -> None:
    statement = "SELECT 1 AS id, 'a \"b\", ü' AS text, NULL AS missing UNION ALL SELECT 2, 'x\ny', NULL ORDER BY 1"
    output = shop.output(statement=statement, mode="read", blob="always", format="csv")
    assert output["rows"]["media_type"] == CSV
    found = list(csv.reader(io.StringIO(shop.content(output), newline="")))
    assert found == [["id", "text", "missing"], ["1", 'a "b", ü', ""], ["2", "x\ny", ""]]
    none = shop.output(statement="SELECT 1 AS id WHERE 1 = 0", mode="read", blob="always", format="csv")
    assert (shop.content(none), none["row_count"]) == ("id\r\n", 0)


def test_what_changes_something_gives_blobs_too_and_once(shop: Shop) -> None:
    values = [{"id": number, "note": "x"} for number in range(100)]
    shop.output("filled", statement=INSERT, values=values)
    change = {"statement": "UPDATE lines SET note = note || 'y' RETURNING id, note"}
    first = shop.output("changed", **change)
    assert (len(shop.content(first).splitlines()), first["row_count"]) == (100, 100)
    assert shop.output("changed", **change) == first
    locked = "SELECT id, note FROM lines" + ("" if shop.sqlite else " FOR UPDATE")
    assert {json.loads(line)["note"] for line in shop.content(shop.output(statement=locked)).splitlines()} == {"xy"}


def test_a_blob_that_is_too_large_undoes_the_step(shop: Shop, tmp_path: Path) -> None:
    small = BlobArea(tmp_path / "small", inline_bytes=10, data_bytes=10, max_bytes=1000, min_free_bytes=0)
    small.open()
    shop.databases._blobs = small
    statements = [{"statement": INSERT, "values": {"id": 1, "note": "x"}}, {"statement": SERIES % 3000}]
    with pytest.raises(PayloadTooLarge):
        shop.run(statements=statements)
    assert shop.output(statement="SELECT * FROM lines", mode="read", blob="never")["rows"] == []
    assert not list(small.path.glob("incoming-*"))


NOTES = [{"id": 1, "note": "ä"}, {"id": 2, "note": "x\ny"}, {"id": 3, "note": ""}]


def as_csv() -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["note", "further", "id"])
    writer.writeheader()
    writer.writerows(NOTES)
    return b"\xef\xbb\xbf" + text.getvalue().encode()  # as Excel writes it


GIVEN = {
    CSV: as_csv(),
    JSON_LINES: b"\n\n".join(json.dumps({**one, "more": [1]}).encode() for one in NOTES),
    JSON: json.dumps(NOTES).encode(),
}


def test_a_blob_of_values(shop: Shop) -> None:
    for kind, content in GIVEN.items():
        output = shop.output(f"wf-1/{kind}", statement=INSERT, values=shop.put(content, kind))
        assert output == {"rows": [], "row_count": 3}
        assert shop.output(statement="SELECT id, note FROM lines ORDER BY id", mode="read")["rows"] == NOTES
        shop.output(f"wf-2/{kind}", statement="DELETE FROM lines")


def test_many_values(shop: Shop) -> None:
    rows = b"".join(b'{"id":%d,"note":"n"}\n' % number for number in range(5000))
    assert shop.output(statement=INSERT, values=shop.put(rows, JSON_LINES))["row_count"] == 5000
    found = shop.output(statement="SELECT count(*) AS c, max(id) AS m FROM lines", mode="read")
    assert found["rows"] == [{"c": 5000, "m": 4999}]


WRONG = [
    (b"id,noted\n1,x\n", CSV, "row 1 of the values: it has no note"),
    (b'{"id": 1, "note": "x"}\n{"id": 2', JSON_LINES, "row 2 of the values cannot be read"),
    (b'{"id": 1, "note": "x"}\n[1]', JSON_LINES, "row 2 of the values: it has no"),
    (b'{"id": 1, "note": "x"}\n"text"', JSON_LINES, "row 2 of the values: it has no"),
    (b"\xff\xfe", CSV, "not UTF-8"),
    (b"{}", JSON, "cannot be read"),
    (b"id,note\n", OCTETS, "not application/octet-stream"),
    (b"[" + b" " * 10_000 + b"]", JSON, "max_value"),
]


def test_wrong_values_undo_the_step(shop: Shop) -> None:
    for content, kind, reason in WRONG:
        refused = shop.run(statement=INSERT, values=shop.put(content, kind))
        assert isinstance(refused, Failed), refused
        assert (refused.code, reason in refused.message) == ("KNHK-ACTION-PARAMS", True), refused
    assert shop.output(statement="SELECT * FROM lines", mode="read")["rows"] == []


def test_the_contents_of_a_blob_as_a_value(shop: Shop) -> None:
    statement = "INSERT INTO lines (id, note, raw) VALUES (:id, :note, :raw)"
    values = {"id": 1, "note": shop.put("grün".encode(), TEXT), "raw": shop.put(b"\xff\x00", OCTETS)}
    shop.output("a", statement=statement, values=[values])
    found = shop.output(statement="SELECT note, raw FROM lines", mode="read")["rows"]
    assert found == [{"note": "grün", "raw": "/wA="}]
    for content, kind in ((b"\xff", TEXT), (b"x" * 10_001, TEXT)):
        refused = shop.run("b", statement=INSERT, values={"id": 2, "note": shop.put(content, kind)})
        assert isinstance(refused, Failed), refused
        assert refused.code == "KNHK-ACTION-PARAMS"


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_gigabyte_is_not_held_in_memory(kind: str, tmp_path: Path) -> None:
    shop = Shop(database_urls(kind, tmp_path), tmp_path / "blobs", 1100 * MiB)
    text = "lower(hex(zeroblob(512000)))" if shop.sqlite else "repeat('0', 1024000)"
    series = (SERIES % 1024).partition("SELECT i, ")[0]
    statement = f"{series} SELECT i AS id, {text} AS note FROM n"
    shop.output(statement=SERIES % 2, mode="read", blob="always")
    with peak_of(os.getpid()) as peak:
        output = shop.output(statement=statement, mode="read")
        assert output["rows"]["size"] > 1000 * MiB
        assert shop.output(statement=INSERT, values=output["rows"])["row_count"] == 1024
    shop.close()
    more = max(peak) - peak[0]
    print(f"{kind}: {more / MiB:.0f} MiB more than before")  # for `pytest -s`
    assert more < 150 * MiB
