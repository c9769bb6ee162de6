"""Chains that are no runs: the record of one thing, such as a definition. Found by a claim, sealed like any other.

A record is looked up by the claim of its key (ports.journal.record_key). In memory it stands for no longer than its
newest receipt needs to become durable.
"""

from knhk.domain.errors import ReceiptCorrupt
from knhk.domain.event import Event
from knhk.domain.identifier import to_text
from knhk.domain.plan import Plan
from knhk.domain.receipt import NO_HASH, ChainState
from knhk.domain.run import Run, RunState
from knhk.engine.live import LiveRun
from knhk.ports.journal import Journal


def tail(record_id: int, plan: Plan, seq: int = 0, previous_hash: bytes = NO_HASH) -> LiveRun:
    """The end of a record's chain, ready for one more receipt, which will name the plan's descriptor.

    It has ended from the start: nothing is ever to be done for it, neither now nor after a restart.
    """
    run = Run(record_id, plan)
    run.state, run.seq = RunState.COMPLETED, seq
    live = LiveRun(run, {})
    live.previous_hash = previous_hash
    return live


async def events_of(journal: Journal, record_id: int) -> tuple[list[Event], bytes]:
    """What a record says, and the hash of its last receipt. Raises ReceiptCorrupt if its chain does not verify."""
    sealed = await journal.receipts(record_id)
    state = ChainState(record_id)
    for one in sealed:
        serious = [fault for fault in state.check(one) if fault.what != "time_reversal"]
        if serious:
            raise ReceiptCorrupt(f"{to_text(record_id)}: {serious[0].message}")
    return [one.receipt().event() for one in sealed], sealed[-1].hash if sealed else NO_HASH
