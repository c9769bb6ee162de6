"""The scripts are POSIX shell, and every example runs to its end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.server import ROOT

SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file())
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
WAITING = {"approval"}
"""Examples that wait for people: test_signals.py answers them."""
CUSTOM = ROOT / "examples" / "custom_action"


def run(directory: Path, data: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KNHK_", "XDG_"))}
    environment = {**kept, "HOME": str(data), "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "knhk", "run", *arguments, "--data", str(data / "data"), "-o", "json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=directory, env=environment, timeout=90, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_posix_shell(script: Path) -> None:
    shells = [shell for shell in ("sh", "dash") if shutil.which(shell)]
    for shell in shells:
        done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    text = script.read_text()
    if os.access(script, os.X_OK):
        assert text.startswith("#!/bin/sh\n")
        assert "\nset -eu\n" in text
    for bashism in ("[[", "function ", "<(", "pipefail", "source "):
        assert bashism not in text


@pytest.mark.parametrize("example", [one for one in EXAMPLES if one.stem not in WAITING], ids=lambda path: path.stem)
def test_an_example_completes(example: Path, tmp_path: Path) -> None:
    code, shown = run(ROOT, tmp_path, str(example.relative_to(ROOT)))
    assert (code, shown["state"]) == (0, "completed"), shown["failure"]
    assert shown["outputs"]
    assert shown["verification"]["valid"] is True


def test_the_example_with_actions_of_its_own_completes(tmp_path: Path) -> None:
    code, shown = run(CUSTOM, tmp_path, "workflow.yaml", "--config", "config.yaml", "--input", "order=B-1")
    assert (code, shown["state"]) == (0, "completed"), shown["failure"]
    assert shown["outputs"]["cents"] == 2100
    assert shown["outputs"]["payment"].startswith("B-1 paid 21.00 under wf-")


def test_the_example_of_quality_names_the_rule_that_is_broken(tmp_path: Path) -> None:
    rows = 'rows=[{"id": 1, "amount": 10}, {"id": 2, "amount": -4}]'
    code, shown = run(ROOT, tmp_path, "examples/quality.yaml", "--input", rows)
    assert (code, shown["state"], shown["failure"]["guard"]) == (1, "failed", "nothing is lost")
    assert shown["verification"]["valid"] is True


def test_examples_are_listed_and_say_what_they_are() -> None:
    listed = (ROOT / "examples" / "README.md").read_text()
    for example in [*EXAMPLES, CUSTOM / "workflow.yaml"]:
        assert f"({example.relative_to(ROOT / 'examples')})" in listed
        assert example.read_text().startswith("# ")
