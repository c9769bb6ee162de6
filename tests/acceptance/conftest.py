from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.server import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A running server with default limits on a data directory of its own."""
    running = Server(tmp_path)
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture
def crashing(tmp_path: Path) -> Iterator[Server]:
    """A server that has the actions of `crash_actions`, not started yet."""
    server = Server(tmp_path, actions={"modules": ["tests.acceptance.crash_actions"]})
    try:
        yield server
    finally:
        server.close()
