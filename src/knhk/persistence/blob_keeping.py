"""Between the committer and the store: what a commit refers to is kept before it, what it erases is destroyed after it.

A mark is durable before the receipts are, so that no receipt is ever without its blob. An erasure is noted before the
commit; if the process dies in between, or nobody can tell whether the commit is in, `settle` asks the journal.
"""

import asyncio
import contextlib
from typing import Protocol

from knhk.domain.blob import KEY_BYTES, digests_in
from knhk.domain.errors import Unavailable, WorkflowPruned
from knhk.domain.event import Kind
from knhk.persistence.blob_area import BlobArea
from knhk.ports.append import Append, Commit, Ownership
from knhk.ports.environment import PublicKey
from knhk.ports.journal import Journal


class Store(Append, Journal, Protocol):
    """A store that appends and reads."""


class BlobKeeper:
    """Implements ports.append.Append over a store and its blob area."""

    def __init__(self, store: Store, area: BlobArea) -> None:
        self._store, self._area = store, area

    async def acquire(self, partition: int) -> Ownership:
        return await self._store.acquire(partition)

    async def register_key(self, key: PublicKey) -> None:
        await self._store.register_key(key)

    async def append(self, commit: Commit) -> None:
        named = [
            (part.workflow_id, raws)
            for part in commit.slices
            if (raws := [one.raw for one in part.payloads if KEY_BYTES in one.raw and digests_in(one.raw)])
        ]
        if named or commit.erased:
            await asyncio.to_thread(self._before, named, commit.erased)
        await self._store.append(commit)
        if commit.erased:
            for run in commit.erased:
                self._area.end_erasure(run, destroy=True)

    async def reopen(self) -> None:
        await self._store.reopen()
        await self.settle()

    async def settle(self) -> None:
        """Finish the erasures that a crash, or a store that failed, interrupted. Raises StorageUnavailable."""
        for run in await asyncio.to_thread(self._area.erasures):
            with contextlib.suppress(Unavailable):  # nobody can tell yet
                self._area.end_erasure(run, destroy=await is_gone(self._store, run))

    def _before(self, named: list[tuple[int, list[bytes]]], erased: list[int]) -> None:
        for run, raws in named:
            self._area.mark(run, raws)
        for run in erased:
            self._area.begin_erasure(run)


async def is_gone(journal: Journal, workflow_id: int, *, pruned: bool = True) -> bool:
    """Whether a run has no payloads any more: it was never committed, was erased, or was pruned if that counts.

    Raises Unavailable if nobody can tell.
    """
    try:
        receipts = await journal.receipts(workflow_id)
    except WorkflowPruned:
        return pruned
    return not receipts or any(one.receipt().kind == Kind.PAYLOAD_ERASED for one in receipts)
