"""Long work of the recovery commands shows how far it is, in a terminal and nowhere else."""

import asyncio
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.server import Server
from tests.integration.recovering import House

SHOWN = re.compile(r"(\w+)\s.*?(\d+)/(\d+)")
"""A bar: the stage, what is done, and of how much."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Server, Path]:
    """The data directory of a server that is off, with some runs, and a snapshot of it."""
    server = Server(tmp_path_factory.mktemp("progress"))
    server.close()

    async def work() -> Path:
        house = await House(server.directory, "").start()
        await house.run(20)
        path = (await house.recovery.snapshots.take()).path
        await house.stop()
        return path

    return server, asyncio.run(work())


def in_a_terminal(server: Server, *arguments: str) -> str:
    """What a command writes to its stderr, which is a terminal of 100 columns."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "knhk", *arguments],
        stdout=subprocess.PIPE,
        stderr=end,
        env={**server.environment(), "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        cwd=server.directory,
    )
    os.close(end)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown.decode()
    assert b"\x1b" not in said, "the data come without bars"
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


@pytest.mark.parametrize(
    ("command", "stages"),
    [
        (("verify", "--full"), {"files", "receipts"}),
        (("backup", "create", "--offline", "--to", "away"), {"copy"}),
        (("recover", "--snapshot"), {"copy", "receipts"}),
    ],
    ids=["verify", "backup", "recover"],
)
def test_bars(prepared: tuple[Server, Path], command: tuple[str, ...], stages: set[str]) -> None:
    server, snapshot = prepared
    more = (str(snapshot),) if command[0] == "recover" else ()
    text = in_a_terminal(server, *command, *more, "--config", str(server.config), "-o", "json")
    bars = SHOWN.findall(text)
    assert {stage for stage, _, _ in bars} >= stages, text
    for stage in stages:
        assert any(done != "0" for name, done, _ in bars if name == stage), text
