"""Services that tests of several rooms share: one of each for a process, started when a test first needs it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.services.s3 import S3


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3]":
    """A real S3 server; each test takes a bucket of its own name."""
    from tests.services.s3 import S3

    server = S3(tmp_path_factory.mktemp("s3"))
    try:
        yield server.start()
    finally:
        server.stop()
