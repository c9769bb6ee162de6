"""The commands by arguments, output and exit codes: on a store that the tests write, and against a fake server."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from knhk.cli import exit_codes
from knhk.cli.client import error_of
from knhk.cli.files import read_inputs
from knhk.cli.live import Tally, line_of
from knhk.cli.main import app
from knhk.domain import errors
from knhk.domain.errors import InvalidInputs, KnhkError
from knhk.persistence.rocksdb import RocksDbStore
from knhk.persistence.rocksdb_options import StoreOptions
from tests.unit.cli.journal import FIRST, RUNS, SIGNER, write_journal

SMALL = StoreOptions(write_buffer_size_bytes=1 << 20, block_cache_size_bytes=1 << 20, max_background_jobs=1)
WF = f"wf-{FIRST}"


def knhk(*arguments: str | Path, code: int = 0, stdin: bytes | None = None) -> Any:
    """Run a command; its decoded JSON if that was asked for, or else the result with stdout and stderr."""
    result = CliRunner().invoke(app, [str(one) for one in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, (result.stdout, result.stderr)
    return json.loads(result.stdout) if "json" in arguments and result.stdout else result


async def _write(path: Path) -> None:
    store = RocksDbStore.open(path, SMALL)
    await write_journal(store)
    await store.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the journal of four runs."""
    path = tmp_path_factory.mktemp("cli") / "data"
    asyncio.run(_write(path))
    return path


class Fake(BaseHTTPRequestHandler):
    """Answers as the API does, from a script, and keeps what it was asked."""

    answers: dict[str, tuple[int, Any]] = {}  # noqa: RUF012  # set by each test
    asked: list[tuple[str, str, dict[str, str], bytes]] = []  # noqa: RUF012

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        Fake.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status, answer = Fake.answers[f"{self.command} {self.path.partition('?')[0]}"]
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        if status == 429:
            self.send_header("retry-after", "3")
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Fake]]:
    """The fake server, which KNHK_SERVER names."""
    Fake.answers, Fake.asked = {}, []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("KNHK_SERVER", f"http://127.0.0.1:{running.server_port}")
    yield Fake
    running.shutdown()
    running.server_close()
    thread.join()


def shown(state: str = "completed", **more: Any) -> dict[str, Any]:
    """A workflow as the API shows it."""
    step = {"name": "a", "action": "process", "state": "completed", "attempts": 1, "guarantee": "at-least-once"}
    return {"workflow_id": WF, "name": "first", "state": state, "steps": [step], "failure": None, **more}


def test_every_error_has_its_exit_code_and_its_meaning() -> None:
    assert [exit_codes.of(kind("x")) for kind in exit_codes.FAMILIES] == [2, 3, 4, 5, 6, 7]
    assert exit_codes.of(errors.DataDirectoryInUse("x")) == 5
    assert exit_codes.of(KnhkError("x")) == 1
    assert {*exit_codes.FAMILIES.values(), 0, 1, 130} == exit_codes.MEANINGS.keys()
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
    for code, meaning in exit_codes.MEANINGS.items():
        assert f"| {code} | {meaning} |" in page


def test_help_names_every_command() -> None:
    text = knhk("--help").stdout
    for name in ("serve", "run", "init", "workflow", "receipts", "verify", "config", "schema", "version"):
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name


def test_an_unknown_command_or_option_is_a_usage_error() -> None:
    assert "status" in knhk("workflow", "statsu", "wf-1", code=2).stderr
    knhk("verify", "--bogus", code=2)
    knhk("receipts", "prove", WF, code=2)


@pytest.mark.parametrize(
    "command", [["verify"], ["receipts", "verify", "--all"], ["receipts", "show", WF], ["receipts", "keys"]]
)
def test_a_data_directory_that_does_not_exist_is_not_found_and_not_made(command: list[str], tmp_path: Path) -> None:
    result = knhk(*command, "--data", tmp_path / "none", code=4)
    assert "knhk init" in result.stderr
    assert "KNHK-3000" in result.stderr
    assert not result.stdout
    assert not list(tmp_path.iterdir())


def test_an_intact_journal_verifies(data: Path) -> None:
    for arguments in (["verify"], ["verify", "--full"], ["receipts", "verify", "--all"]):
        report = knhk(*arguments, "--data", data, "-o", "json")
        assert (report["valid"], report["total_count"], report["verified_count"]) == (True, 19, 19)
    for run in RUNS:
        assert knhk("receipts", "verify", f"wf-{run}", "--data", data, "-o", "json")["valid"]
    assert "all 19 receipts verified" in knhk("verify", "--data", data).stdout
    assert yaml.safe_load(knhk("verify", "--data", data, "-o", "yaml").stdout)["valid"] is True


def test_reading_leaves_the_directory_as_it_was(data: Path) -> None:
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    knhk("verify", "--full", "--data", data)
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before


def test_another_public_key_makes_a_journal_invalid(data: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from knhk.ports.environment import PublicKey
    from knhk.security.signing import key_id, public_pem

    raw = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    other = tmp_path / "other.pem"
    other.write_bytes(public_pem(PublicKey(key_id(raw), raw, 0)))
    report = knhk("verify", "--data", data, "--public-key", other, "-o", "json", code=1)
    assert (report["valid"], report["signature_failures"], report["verified_count"]) == (False, 5, 0)
    assert "INVALID" in knhk("receipts", "verify", WF, "--data", data, "--public-key", other, code=1).stdout


def test_unknown_workflows_and_receipts_are_not_found(data: Path) -> None:
    knhk("receipts", "verify", "wf-77", "--data", data, code=4)
    knhk("receipts", "verify", "nonsense", "--data", data, code=4)
    knhk("receipts", "show", "wf-77", "--data", data, code=4)
    assert "KNHK-3002" in knhk("receipts", "prove", WF, "--seq", "99", "--data", data, code=4).stderr
    knhk("receipts", "verify", "--data", data, code=2)
    knhk("receipts", "verify", WF, "--all", "--data", data, code=2)


def test_receipts_are_shown(data: Path) -> None:
    found = knhk("receipts", "show", WF, "--data", data, "-o", "json")
    assert [one["seq"] for one in found["receipts"]] == list(range(6))
    assert found["receipts"][0]["detail"] == {"name": "first", "steps": 2}
    assert len(knhk("receipts", "show", WF, "--from-seq", "4", "--data", data, "-o", "json")["receipts"]) == 2
    assert knhk("receipts", "show", WF, "--from-seq", "40", "--data", data, "-o", "json")["receipts"] == []
    assert "workflow.submitted" in knhk("receipts", "show", WF, "--data", data).stdout


def test_a_proof_is_made_and_checked_with_the_exported_key_alone(data: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert "Wrote" in knhk("receipts", "keys", "--export", keys, "--data", data).stderr
    key, proof = keys / f"{SIGNER.public_key.key_id}.pem", tmp_path / "proof.json"
    knhk("receipts", "prove", WF, "--seq", "2", "--output-file", proof, "--data", data)
    checked = knhk("receipts", "check-proof", proof, "--public-key", key, "-o", "json")
    assert (checked["valid"], checked["seq"], checked["kind"], checked["block_height"]) == (
        True,
        2,
        "step.completed",
        1,
    )
    printed = knhk("receipts", "prove", WF, "--seq", "2", "--data", data).stdout
    assert json.loads(printed) == json.loads(proof.read_text())
    knhk("receipts", "check-proof", "-", "--public-key", key, stdin=printed.encode())
    forged = {**json.loads(printed), "leaf_index": 0}
    proof.write_text(json.dumps(forged))
    assert knhk("receipts", "check-proof", proof, "--public-key", key, "-o", "json", code=1)["valid"] is False
    proof.write_text("{}")
    knhk("receipts", "check-proof", proof, "--public-key", key, code=2)
    knhk("receipts", "check-proof", proof, "--public-key", proof, code=2)
    knhk("receipts", "check-proof", tmp_path / "none", "--public-key", key, code=4)


def test_inputs_are_json_or_text_and_options_win(tmp_path: Path) -> None:
    file = tmp_path / "inputs.yaml"
    file.write_text("a: 1\nb: no\nday: 2026-01-31\nclock: 1:30\nflag: true\nnone: ~\n")
    found = read_inputs(["a=2", "text=abc", 'quoted="3"', "list=[1, 2]", "empty=", "equals=a=b", "nan=NaN"], file)
    assert found == {
        "a": 2,
        "b": "no",
        "day": "2026-01-31",
        "clock": "1:30",
        "flag": True,
        "none": None,
        "text": "abc",
        "quoted": "3",
        "list": [1, 2],
        "empty": "",
        "equals": "a=b",
        "nan": "NaN",
    }
    with pytest.raises(InvalidInputs) as caught:
        read_inputs(["novalue", "=x"], None)
    assert len(caught.value.problems) == 2
    for text in ("[1]", "a: [", "1: x", "a: !!python/object:os.system x"):
        file.write_text(text)
        with pytest.raises(InvalidInputs):
            read_inputs(None, file)


def test_submit_sends_the_descriptor_as_it_is(server: type[Fake], tmp_path: Path) -> None:
    server.answers["POST /workflows"] = (202, {"workflow_id": WF, "state": "pending", "replayed": False})
    file = tmp_path / "w.yaml"
    file.write_bytes(b"apiVersion: knhk/v1\n")
    answer = knhk("workflow", "submit", file, "--idempotency-key", "k1", "--wait", "2s", "-o", "json")
    assert answer["workflow_id"] == WF
    _, path, headers, body = server.asked[0]
    assert (path, body) == ("/workflows?wait=2s", b"apiVersion: knhk/v1\n")
    assert (headers["content-type"], headers["idempotency-key"]) == ("application/yaml", "k1")
    assert WF in knhk("workflow", "submit", "-", "-i", "x=1", stdin=b"text").stdout
    assert json.loads(server.asked[1][3]) == {"descriptor": "text", "inputs": {"x": 1}}
    assert server.asked[1][2]["content-type"] == "application/json"


def test_submit_with_wait_exits_by_the_result(server: type[Fake]) -> None:
    for state, code in (("completed", 0), ("running", 0), ("failed", 1), ("timed_out", 1), ("cancelled", 1)):
        server.answers["POST /workflows"] = (200, {"workflow_id": WF, "state": state, "replayed": False})
        knhk("workflow", "submit", "-", "--wait", "1s", stdin=b"x", code=code)
    knhk("workflow", "submit", "-", "--wait", "soon", stdin=b"x", code=2)
    knhk("workflow", "submit", "none.yaml", code=4)


def test_status_inspect_and_steering(server: type[Fake]) -> None:
    server.answers[f"GET /workflows/{WF}"] = (200, shown(inputs={"x": 1}))
    server.answers[f"GET /workflows/{WF}/receipts"] = (200, {"receipts": []})
    assert knhk("workflow", "status", WF, "-o", "json")["state"] == "completed"
    assert "process" in knhk("workflow", "status", WF).stdout
    assert knhk("workflow", "inspect", WF, "--verbose", "-o", "json")["history"] == []
    assert "verbose=true" in server.asked[2][1]
    for verb in ("cancel", "pause", "resume", "retry"):
        server.answers[f"POST /workflows/{WF}/{verb}"] = (200, shown("running"))
        reason = [] if verb == "retry" else ["--reason", "because"]
        knhk("workflow", verb, WF, *reason, "-o", "json")
        assert server.asked[-1][3] == (b"" if verb == "retry" else b'{"reason": "because"}')
    server.answers[f"DELETE /workflows/{WF}"] = (200, {"workflow_id": WF, "erased": True})
    assert knhk("workflow", "delete", WF, "-o", "json")["erased"] is True


def test_a_list_is_read_page_by_page(server: type[Fake]) -> None:
    row = dict.fromkeys(("department", "submitted_at", "duration_ms"))
    row |= {"workflow_id": WF, "name": "n", "state": "failed", "steps_total": 1, "steps_completed": 0}
    server.answers["GET /workflows"] = (200, {"workflows": [row], "next_cursor": "5"})
    found = knhk("workflow", "list", "--state", "failed", "--limit", "2", "-o", "json")
    assert (len(found["workflows"]), found["next_cursor"], len(server.asked)) == (2, "5", 2)
    assert "--cursor 5" in knhk("workflow", "list", "--limit", "1").stderr


def test_the_servers_errors_are_shown_as_they_are_here(server: type[Fake]) -> None:
    problem = {
        "title": "Invalid workflow descriptor",
        "status": 422,
        "detail": "2 problems",
        "code": "KNHK-1001",
        "hint": "look",
        "problems": [{"message": "unknown key", "path": "spec.x", "line": 3, "column": 5, "suggestion": "y"}],
    }
    server.answers["POST /workflows"] = (422, problem)
    text = knhk("workflow", "submit", "-", stdin=b"x", code=2).stderr
    assert "line 3, column 5: spec.x: unknown key (did you mean 'y'?)" in text
    assert "Hint: look" in text
    assert "Code: KNHK-1001" in text
    for status, code in ((429, 3), (404, 4), (409, 5), (503, 6), (500, 1)):
        server.answers[f"GET /workflows/{WF}"] = (status, b"<html>")
        knhk("workflow", "status", WF, code=code)
    corrupt = error_of(500, json.dumps({"code": "KNHK-6001", "detail": "bad"}).encode())
    assert isinstance(corrupt, errors.ReceiptCorrupt)
    assert error_of(429, b"{}", "3").retry_after_s == 3.0


def test_no_server_is_unavailable_and_a_bad_url_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "knhk serve" in knhk("workflow", "status", WF, "--server", "http://127.0.0.1:9", code=6).stderr
    knhk("workflow", "status", WF, "--server", "localhost:8080", code=2)
    knhk("workflow", "status", "../../etc", code=4)


def receipt(seq: int, kind: str, step: str = "", **detail: Any) -> dict[str, Any]:
    """A receipt as the API shows it."""
    return {"seq": seq, "kind": kind, "step": step, "attempt": 1, "at_ns": 10**18 + seq, "detail": detail}


def test_watch_follows_to_the_end(server: type[Fake]) -> None:
    receipts = [receipt(0, "workflow.submitted", name="n", steps=1), receipt(1, "step.completed", "a")]
    receipts.append(receipt(2, "workflow.failed", failure={"message": "no"}))
    events = "".join(f": still here\n\nid: {r['seq']}\nevent: {r['kind']}\ndata: {json.dumps(r)}\n\n" for r in receipts)
    server.answers[f"GET /workflows/{WF}/events"] = (200, events.encode())
    server.answers[f"GET /workflows/{WF}"] = (200, shown("failed", failure={"message": "no"}))
    result = knhk("workflow", "watch", WF, code=1)
    assert [line.split()[1] for line in result.stderr.splitlines()] == [
        "workflow.submitted",
        "step.completed",
        "workflow.failed:",
    ]
    assert "failed" in result.stdout


def test_the_tally_keeps_what_is_under_way() -> None:
    tally = Tally(WF)
    tally.take(receipt(0, "workflow.submitted", name="n", steps=50))
    tally.take(receipt(1, "step.started", "slow"))
    for number in range(50):
        tally.take(receipt(2 + number, "step.completed", f"s{number}", started_at_ns=10**18))
    assert (tally.steps, tally.completed, tally.state) == (50, 50, "pending")
    assert "slow" in tally.newest
    assert len(tally.newest) == 12
    assert line_of(receipt(5, "step.failed", "a", failure={"message": "why\nmore"})).endswith("step.failed a: why")


def test_validate_names_every_problem_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(
        "apiVersion: knhk/v1\nkind: Workflow\nmetadata: {name: x}\nspec:\n  covenat: Q\n"
        "  steps:\n    - {name: a, action: proces}\n"
    )
    result = knhk("workflow", "validate", file, code=2)
    assert "line 5, column 3" in result.stderr
    assert "'covenant'" in result.stderr
    assert "'process'" in result.stderr
    problems = knhk("workflow", "validate", file, "-o", "json", code=2)["problems"]
    assert [problem["line"] for problem in problems] == [5, 7]
    file.write_text(file.read_text().replace("covenat: Q", "covenant: Sigma").replace("proces}", "process}"))
    assert knhk("workflow", "validate", file, "-o", "json")["steps"] == 1


def test_config_show_says_where_values_come_from(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("api:\n  port: 8123\n")
    for arguments in (["config", "show", "--config", file], ["--config", file, "config", "show"]):
        values = {row["key"]: row for row in knhk(*arguments, "-o", "json")["values"]}
        assert values["api.port"] == {"key": "api.port", "value": "8123", "source": f"file:{file}:2"}
    file.write_text("api:\n  prot: 8123\n")
    assert "'api.port'" in knhk("config", "show", "--config", file, code=2).stderr


def test_version() -> None:
    assert knhk("version", "-o", "json").keys() == {"version", "python"}
