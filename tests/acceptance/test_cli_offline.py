"""What the command line does without a server, through real processes."""

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.server import ROOT

HELLO = ROOT / "examples" / "hello.yaml"
FAILS = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: fails}
spec:
  steps:
    - name: first
      action: process
      params: {a: 1}
    - name: second
      action: fail
      params: {message: not today}
      depends_on: [first]
"""
WAITS = """
apiVersion: knhk/v1
kind: Workflow
metadata: {name: waits}
spec:
  steps:
    - {name: nap, action: wait, params: {duration: 3s}}
"""


class Knhk:
    """Runs `python -m knhk` with a data directory and a home of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.data = directory, directory / "data"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KNHK_", "XDG_"))}
        self.environment = {**kept, "HOME": str(directory), "PYTHONPATH": str(ROOT / "src")}

    def __call__(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.directory,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"{done.returncode}: {done.stdout}\n{done.stderr}"
        return done

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "knhk", *map(str, arguments)]

    def json(self, *arguments: str | Path, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--output", "json", code=code).stdout)


@pytest.fixture
def knhk(tmp_path: Path) -> Knhk:
    return Knhk(tmp_path)


def test_a_workflow_runs_is_verified_and_proven_without_a_server(knhk: Knhk, tmp_path: Path) -> None:
    done = knhk("run", HELLO, "--input", "quantity=2", "--data", knhk.data)
    assert "Thank you, Ada: that is 28 euros." in done.stdout
    assert re.search(r"all \d+ receipts verified", done.stdout)
    assert "step.completed greet" in done.stderr
    workflow_id = re.search(r"wf-\d+", done.stdout)
    assert workflow_id is not None
    name = workflow_id[0]

    assert knhk.json("receipts", "verify", name, "--data", knhk.data)["valid"] is True
    for arguments in (["verify"], ["verify", "--full"], ["receipts", "verify", "--all"]):
        report = knhk.json(*arguments, "--data", knhk.data)
        assert report["valid"] is True
        assert report["verified_count"] == report["total_count"] > 0
    receipts = knhk.json("receipts", "show", name, "--data", knhk.data)["receipts"]
    assert [one["seq"] for one in receipts] == list(range(len(receipts)))

    knhk("receipts", "keys", "--export", tmp_path / "exported", "--data", knhk.data)
    (key,) = (tmp_path / "exported").iterdir()
    for seq in range(len(receipts)):
        knhk(
            "receipts", "prove", name, "--seq", str(seq), "--output-file", tmp_path / "proof.json", "--data", knhk.data
        )
        if seq in (0, len(receipts) - 1):
            knhk.data.rename(tmp_path / "away")  # nothing but the proof and the key is needed
            checked = knhk.json("receipts", "check-proof", tmp_path / "proof.json", "--public-key", key)
            assert (checked["valid"], checked["hash"]) == (True, receipts[seq]["hash"])
            (tmp_path / "away").rename(knhk.data)
    forged = json.loads((tmp_path / "proof.json").read_text())
    forged["leaf_index"] += 1
    (tmp_path / "proof.json").write_text(json.dumps(forged))
    knhk("receipts", "check-proof", tmp_path / "proof.json", "--public-key", key, code=1)


def test_a_workflow_that_fails_exits_with_1_and_its_receipts_still_verify(knhk: Knhk, tmp_path: Path) -> None:
    file = tmp_path / "fails.yaml"
    file.write_text(FAILS)
    shown = knhk.json("run", file, "--data", knhk.data, code=1)
    assert shown["state"] == "failed"
    assert shown["failure"]["step"] == "second"
    assert "not today" in shown["failure"]["message"]
    assert shown["verification"]["valid"] is True


def test_wrong_descriptors_and_inputs_change_nothing(knhk: Knhk, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(FAILS.replace("depends_on: [first]", "depends_on: [frist]").replace("action: fail", "action: fali"))
    for command in (["workflow", "validate", file], ["run", file, "--data", knhk.data]):
        text = knhk(*command, code=2).stderr
        assert "line 11, column" in text
        assert "did you mean 'fail'?" in text
        assert "line 13, column" in text
        assert "did you mean 'first'?" in text
        assert "KNHK-1001" in text
    assert knhk.json("workflow", "validate", HELLO)["valid"] is True
    assert "KNHK-1002" in knhk("run", HELLO, "--input", "quantity=0", "--data", knhk.data, code=2).stderr
    knhk("run", tmp_path / "none.yaml", code=4)
    assert knhk.json("verify", "--data", knhk.data)["total_count"] == 0


def test_init_is_done_once_and_says_so(knhk: Knhk, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"persistence:\n  path: {knhk.data}\n")
    first = knhk.json("init", "--config", config)
    assert (first["data_created"], first["signing_key_created"]) == (True, True)
    assert stat.S_IMODE(Path(first["signing_key"]).stat().st_mode) == 0o600
    again = knhk.json("init", "--config", config)
    assert again == {**first, "data_created": False, "signing_key_created": False}
    assert list(knhk.data.iterdir()) == []  # the first start makes the store
    config.write_text("persistence:\n  pth: x\n")
    assert "persistence.path" in knhk("init", "--config", config, code=2).stderr


def test_a_damaged_journal_is_named_and_never_valid(knhk: Knhk) -> None:
    knhk("run", HELLO, "--data", knhk.data)
    files = [path for path in knhk.data.iterdir() if path.suffix in (".sst", ".log") and path.stat().st_size]
    assert files
    codes = set()
    for file in files:
        intact = file.read_bytes()
        raw = bytearray(intact)
        raw[40 % len(raw)] ^= 1
        file.write_bytes(raw)
        done = subprocess.run(
            knhk.command("verify", "--full", "--data", knhk.data, "--output", "json"),
            capture_output=True,
            text=True,
            env=knhk.environment,
            timeout=60,
            check=False,
        )
        codes.add(done.returncode)
        assert done.returncode in (1, 7), file.name
        if done.returncode == 1:
            report = json.loads(done.stdout)
            assert report["valid"] is False
            assert any(str(knhk.data) in problem for problem in report["problems"])
        else:
            assert "KNHK-6002" in done.stderr
            assert not done.stdout
        file.write_bytes(intact)
    assert 1 in codes
    assert knhk.json("verify", "--full", "--data", knhk.data)["valid"] is True


def _heed_interrupts() -> None:
    """Tests that a shell runs in the background inherit that SIGINT is ignored; a person at a terminal does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_run_that_is_interrupted_goes_on_in_the_next_one(knhk: Knhk, tmp_path: Path) -> None:
    file = tmp_path / "waits.yaml"
    file.write_text(WAITS)
    with subprocess.Popen(
        knhk.command("run", file, "--data", knhk.data),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=knhk.environment,
        preexec_fn=_heed_interrupts,
    ) as process:
        assert process.stderr is not None
        while "timer.set" not in (line := process.stderr.readline()):
            assert line, "the run ended before it waited"
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=20)
    assert process.returncode == 130, text
    found = re.search(r"wf-\d+", text)
    assert found is not None
    assert "goes on" in text
    name = found[0]
    assert knhk.json("receipts", "verify", name, "--data", knhk.data)["valid"] is True
    time.sleep(3)
    knhk("run", HELLO, "--data", knhk.data)
    kinds = [one["kind"] for one in knhk.json("receipts", "show", name, "--data", knhk.data)["receipts"]]
    assert kinds[-1] == "workflow.completed"
    assert kinds.count("step.completed") == 1


def test_on_a_terminal_progress_is_live(knhk: Knhk) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        knhk.command("run", HELLO, "--data", knhk.data),
        stderr=theirs,
        stdout=subprocess.PIPE,
        env={**knhk.environment, "TERM": "xterm-256color", "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux says that the other side has closed
                break
            if not part:
                break
            seen += part
        os.close(ours)
    assert process.returncode == 0
    assert b"\x1b[" in seen
    assert b"4/4" in seen
    assert b"completed" in seen


def test_help_is_quick(knhk: Knhk) -> None:
    knhk("--help")
    took = []
    for _ in range(3):
        began = time.perf_counter()
        knhk("--help")
        took.append(time.perf_counter() - began)
    assert min(took) < 1.5  # about 0.2 s with compiled modules on an idle machine
