"""Feedback enters by the front door: what a subsystem found or proposes becomes a receipt on a record of its own.

A record is found by the family of its kind and its name. Each proposal is one receipt more at the end of its chain; the
descriptor that its receipts must name is the same small one for all.
"""

import asyncio
from typing import Final

from knhk.domain.event import KIND_OF, Event, RecordDetail, family_of, record_name
from knhk.domain.receipt import NO_HASH
from knhk.engine.admission import Admission
from knhk.engine.committer import Committer
from knhk.engine.plans import Plans
from knhk.engine.records import events_of, tail
from knhk.ports.environment import Clock, Ids
from knhk.ports.journal import Claim, Journal, record_key

_DESCRIPTOR: Final = b"""\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: record}
spec:
  steps: [{name: record, action: process}]
"""


class Proposals:
    """Appends to records. Only this process writes them: proposals take turns."""

    def __init__(
        self,
        partition: int,
        *,
        admission: Admission,
        committer: Committer,
        plans: Plans,
        journal: Journal,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._partition, self._admission, self._committer, self._plans = partition, admission, committer, plans
        self._journal, self._clock, self._ids = journal, clock, ids
        self._turn = asyncio.Lock()

    async def propose(self, detail: RecordDetail, *, actor: str) -> int:
        """Put a receipt on the record that the detail belongs to; the record's id, once that is committed.

        Raises ShuttingDown, DiskFull, StorageUnavailable, or ReceiptCorrupt if the record does not verify.
        """
        self._admission.check_open()
        key = record_key(family_of(KIND_OF[type(detail)]), record_name(detail))
        plan = self._plans.compile(_DESCRIPTOR)
        async with self._turn:
            claim = await self._journal.claim(key)
            if claim is None:
                record_id, seq, last_hash = self._ids.next_id(self._partition), 0, NO_HASH
                self._committer.claim(Claim(key, record_id, plan.digest))
            else:
                record_id = claim.workflow_id
                events, last_hash = await events_of(self._journal, record_id)
                seq = len(events)
            self._committer.keep_descriptor(plan.digest, _DESCRIPTOR)
            live = tail(record_id, plan, seq, last_hash)
            self._committer.add(live, Event(self._clock.now_ns(), detail, actor=actor))
            batch = live.batch
            assert batch is not None
            # Not called off with the caller: the next proposal must find the end of the chain.
            await asyncio.shield(batch.committed())
            return record_id
