"""What tests of all rooms share: settings of hypothesis, and services, one of each for a process, when first needed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.services.s3 import S3

settings.register_profile("knhk", deadline=None, print_blob=True)  # a loaded machine is no bug of an example
settings.load_profile("knhk")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3]":
    """A real S3 server; each test takes a bucket of its own name."""
    from tests.services.s3 import S3

    server = S3(tmp_path_factory.mktemp("s3"))
    try:
        yield server.start()
    finally:
        server.stop()
