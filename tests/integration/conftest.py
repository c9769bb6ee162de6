"""Stores that tests of several files use."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.retaining import House
from tests.services.postgres import shared_server


@pytest.fixture(params=["rocksdb", "postgres"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path, shared_server().new_database() if request.param == "postgres" else "")
    yield made
    await made.close()
