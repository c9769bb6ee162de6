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
