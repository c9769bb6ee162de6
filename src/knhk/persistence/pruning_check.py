"""Verification of what was pruned: every hash that stands alone belongs to a run of a signed record."""

from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

from knhk.domain.errors import Corrupt
from knhk.domain.identifier import partition_of, to_text
from knhk.domain.receipt import Sealed
from knhk.persistence.prune_records import RECORD_PREFIX, PruneRecord, SignedRecord, digest_entry
from knhk.persistence.scanner import JournalScanner
from knhk.persistence.verification import Report, Trust

if TYPE_CHECKING:
    from hashlib import _Hash


def objection_to(signed: SignedRecord, record: PruneRecord, trust: Trust) -> str:
    """Why a record's signature is not accepted; empty if it is."""
    key = trust.keys.get(record.key_id)
    if key is None:
        return f"its key {record.key_id!r} is not among those that are trusted"
    if key.retired_at_ns and record.at_ns > key.retired_at_ns:
        return f"its key {record.key_id!r} was retired before"
    if not trust.check(key, RECORD_PREFIX + signed.body, signed.signature):
        return f"the signature does not verify with key {record.key_id!r}"
    return ""


class PruningCheck:
    """Follows the pruned runs in the order of their ids, record by record."""

    def __init__(self) -> None:
        self._records: dict[tuple[int, int], PruneRecord] = {}
        self._digests: dict[tuple[int, int], _Hash] = {}
        self._workflows: dict[tuple[int, int], int] = {}

    def open(self, scanner: JournalScanner, trust: Trust, report: Report) -> None:
        """Read the records."""
        try:
            for signed in scanner.prune_records():
                record = signed.record()
                objection = objection_to(signed, record, trust)
                if objection:
                    report.note("signature", f"record {record.number} of pruned workflows: {objection}")
                place = (record.partition, record.number)
                self._records[place], self._digests[place], self._workflows[place] = record, sha256(), 0
        except Corrupt as error:
            report.note("corrupt", error.message)

    def take(self, workflow_id: int, sealed: Sequence[Sealed], report: Report) -> None:
        """The receipts of a run, pruned or not."""
        numbers = {one.pruned_by for one in sealed}
        if numbers == {None} or not sealed:
            return
        place = (partition_of(workflow_id), sealed[0].pruned_by or 0)
        if len(numbers) > 1:
            report.note("corrupt", f"{to_text(workflow_id)}: a part of its receipts was pruned")
        elif place not in self._records:
            report.note(
                "missing", f"{to_text(workflow_id)}: its receipts are gone, and no record says that it was pruned"
            )
        else:
            self._digests[place].update(digest_entry(workflow_id, sealed[-1].hash))
            self._workflows[place] += 1

    def close(self, report: Report) -> None:
        """Compare the runs with the records, and say what was pruned."""
        for place, record in self._records.items():
            if self._workflows[place] != record.workflows or self._digests[place].digest() != record.digest:
                report.note(
                    "chain_break",
                    f"record {record.number} of partition {record.partition} has {record.workflows} pruned workflows; "
                    f"{self._workflows[place]} are there, or others",
                )
            report.notes.append(record.sentence())
