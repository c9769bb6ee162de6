from collections.abc import AsyncIterator

import pytest

from tests.unit.api.node import Node, running


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running() as started:
        yield started
