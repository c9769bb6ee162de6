"""Each contract test runs once per store."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.backends import (
    Backend,
    EncryptedPostgresBackend,
    EncryptedRocksDbBackend,
    MemoryBackend,
    PostgresBackend,
    RocksDbBackend,
)

KINDS = [MemoryBackend, RocksDbBackend, EncryptedRocksDbBackend, PostgresBackend, EncryptedPostgresBackend]


@pytest.fixture(params=KINDS, ids=lambda one: one.name)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return request.param(tmp_path)


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Any]:
    made = backend.open()
    yield made
    await made.close()
