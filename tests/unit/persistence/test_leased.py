"""Nothing is acknowledged that another owner might not know of."""

from typing import Any

import pytest

from knhk.domain.errors import Fenced
from knhk.persistence.leased import LeasedAppend


class _Store:
    def __init__(self) -> None:
        self.written: list[int] = []

    async def append(self, commit: Any) -> None:
        self.written.append(commit.block.height)


class _Commit:
    class block:
        partition, height = 2, 7


async def append(holds: list[bool], arrived: Any = None) -> list[int]:
    store = _Store()
    await LeasedAppend(store, lambda _: holds.pop(0), arrived).append(_Commit())  # type: ignore[arg-type]
    return store.written


async def test_a_commit_counts_only_if_the_lease_was_alive_before_and_after_it() -> None:
    assert await append([True, True, True]) == [7]
    with pytest.raises(Fenced):
        await append([False])
    with pytest.raises(Fenced, match="partition 2: the lease of this node is over"):
        await append([True, False])


async def test_a_commit_counts_only_when_it_has_arrived_and_the_node_owns_the_partition_still() -> None:
    answers = [False, True]

    async def arrived(partition: int, height: int, _limit_s: float) -> bool:
        assert (partition, height) == (2, 7)
        return answers.pop(0)

    assert await append([True] * 4, arrived) == [7]
    assert not answers
    answers = [False, False, False]
    with pytest.raises(Fenced):
        await append([True, True, True, False], arrived)
