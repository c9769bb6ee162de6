"""The details of events on chains that are no runs: records of events, definitions, drills, scaling. See event.py."""

from knhk.domain.detail import Detail


class EventReceived(Detail, frozen=True, gc=False):
    """An event came for all runs that wait for it, with its data as output; it is kept until a time (Unix, ns)."""

    name: str
    correlate: str
    id: str
    kept_until_ns: int


class DefinitionPut(Detail, frozen=True, gc=False):
    """A version of a definition was registered; it never changes. Versions count from 1, `label` is a name for one."""

    name: str
    version: int
    digest: bytes
    label: str = ""
    department: str = ""
    note: str = ""


class DefinitionRetired(Detail, frozen=True, gc=False):
    """No further runs start from the definition, until another version is put."""

    name: str
    reason: str = ""


class RecoveryDrilled(Detail, frozen=True, gc=False):
    """A backup was restored on trial; times in ns. RTO is how long it took, RPO how much would have been lost."""

    name: str
    source: str
    ok: bool
    rto_ns: int
    rpo_ns: int
    receipts: int
    workflows: int
    folded: int
    problems: tuple[str, ...] = ()


class ScalingDecided(Detail, frozen=True, gc=False):
    """How many replicas there are to be, and why. `drains` names those that are drained first."""

    name: str
    driver: str
    before: int
    after: int
    reason: str = ""
    signals: tuple[str, ...] = ()
    drains: tuple[str, ...] = ()


class ScalingEnded(Detail, frozen=True, gc=False):
    """What became of the decision before it: `done`, `failed`, `cancelled`, or `advised` if nothing can be done."""

    name: str
    outcome: str
    problem: str = ""


RecordDetail = DefinitionPut | DefinitionRetired | EventReceived | RecoveryDrilled | ScalingDecided | ScalingEnded
"""What stands on chains that are no runs: each such chain is the record of one thing, such as one definition.

It is found by the claim of `record_key` (ports/journal.py), of the family of its kind and its name (`record_name`).
"""
