"""Which keys of runs a commit needs and destroys, in any store."""

from knhk.persistence.cipher import Sealer, run_path
from knhk.persistence.rocksdb_keys import MAX_SEQ, run_key
from knhk.persistence.rows import Rows
from knhk.ports.append import Commit, RunSlice
from knhk.ports.keys import DataKeys, RunPath


def seal_payloads(commit: Commit, part: RunSlice, row: bytes, sealer: Sealer) -> bytes:
    """The row of a slice's payloads, encrypted."""
    key = run_key(part.workflow_id, part.first_seq)
    if part.workflow_id in commit.erased:  # its own key goes with this very commit
        return sealer.seal("payloads", key, row)
    return sealer.seal_for_run("payloads", key, row, part.department, part.workflow_id)


def keys_of_erased(commit: Commit, rows: Rows) -> list[RunPath]:
    """The keys that encrypt the payloads which the commit erases."""
    found = set()
    for workflow_id in commit.erased:
        end = run_key(workflow_id, MAX_SEQ) + b"\x00"
        for _, row in rows.scan("payloads", run_key(workflow_id, 0), end):
            path = run_path(row, workflow_id)
            if path is not None:
                found.add(path)
    return sorted(found, key=lambda path: (path.workflow_id, path.generation))


def settle(keys: DataKeys, rows: Rows) -> None:
    """Destroy the keys whose erasure was committed before a crash; drop the notes of those that were not."""
    for path in keys.pending_erasures:
        start, end = run_key(path.workflow_id, 0), run_key(path.workflow_id, MAX_SEQ) + b"\x00"
        left = rows.scan("payloads", start, end)
        keys.settle_erasure([path], destroy=not any(run_path(row, path.workflow_id) for _, row in left))
