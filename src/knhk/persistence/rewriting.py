"""Re-encryption of what is stored: rows in clear, or under an older generation of keys, page by page.

    meta 'rewriting'    msgpack Progress, written in one batch with the rows of each page

A row is only replaced if it is still the one that was read, and only by the same row under another key: dying between
two pages loses nothing, and a page that is done twice is the same.
"""

from typing import Final

import msgspec

from knhk.domain.errors import Corrupt, DataErased, EncryptionKeyUnavailable
from knhk.domain.event import Submitted
from knhk.persistence import receipt_rows
from knhk.persistence.cipher import MARK, Cipher, Sealer, generation_of, is_sealed, run_path
from knhk.persistence.rocksdb_keys import DESCRIPTOR, REWRITING_KEY, ROW, RUN, run_key
from knhk.persistence.rows import Changes, Rows

FAMILIES: Final = ("receipts", "payloads", "index", "runs")
"""Those that have encrypted rows, in the order in which they are rewritten."""
_PREFIX: Final = {"receipts": b"", "payloads": b"", "index": DESCRIPTOR, "runs": ROW}


class Progress(msgspec.Struct):
    """How far the rows have been brought to a generation. `after` is the last key that was looked at in `family`.

    `damaged` counts rows that do not decrypt and were left as they are. `ended_at_ns` is 0 while there is more to do.
    """

    generation: int = 0
    family: str = FAMILIES[0]
    after: bytes = b""
    looked_at: int = 0
    rewritten: int = 0
    damaged: int = 0
    started_at_ns: int = 0
    ended_at_ns: int = 0


class Page(msgspec.Struct):
    """What one page did: the bytes that were read, and the progress after it."""

    read_bytes: int
    progress: Progress


_PROGRESS: Final = msgspec.msgpack.Decoder(Progress)


def progress_of(rows: Rows) -> Progress:
    """How far it is."""
    raw = rows.get("meta", REWRITING_KEY)
    return Progress() if raw is None else _PROGRESS.decode(raw)


def keep_progress(changes: Changes, progress: Progress) -> None:
    """Write the progress together with what it tells of."""
    changes.put("meta", REWRITING_KEY, msgspec.msgpack.encode(progress))


def rewrite_page(rows: Rows, cipher: Cipher, changes: Changes, most_bytes: int, now_ns: int) -> Page:
    """Change the next rows into what they are to be, and note the progress with them."""
    keys, sealer = cipher.keys, cipher.sealer()
    assert keys is not None
    assert sealer is not None
    progress = progress_of(rows)
    if progress.generation != keys.active:
        progress = Progress(keys.active, started_at_ns=now_ns)
    read, rewriter = 0, _Rewriter(rows, cipher, sealer)
    prefix = _PREFIX[progress.family]
    start = progress.after + b"\x00" if progress.after else prefix
    for key, row in rows.scan(progress.family, start, None):
        if not key.startswith(prefix):
            break
        read += len(key) + len(row)
        progress.after, progress.looked_at = key, progress.looked_at + 1
        if not row or _is_current(progress.family, row, keys.active):
            continue
        try:
            changed = rewriter.row(progress.family, key, row)
        except DataErased:
            continue
        except (Corrupt, EncryptionKeyUnavailable, msgspec.DecodeError):
            progress.damaged += 1
            continue
        changes.replace(progress.family, key, row, changed)
        progress.rewritten += 1
        if read >= most_bytes:
            keep_progress(changes, progress)
            return Page(read, progress)
    following = FAMILIES.index(progress.family) + 1
    if following < len(FAMILIES):
        progress.family, progress.after = FAMILIES[following], b""
    else:
        progress.ended_at_ns = now_ns
    keep_progress(changes, progress)
    return Page(read, progress)


def _is_current(family: str, row: bytes, generation: int) -> bool:
    if family == "receipts":
        if receipt_rows.is_pruned(row):
            return True
        row = receipt_rows.box_of(row) if receipt_rows.is_encrypted(row) else row
    return is_sealed(row) and generation_of(row) == generation


class _Rewriter:
    """Opens rows and seals them again."""

    def __init__(self, rows: Rows, cipher: Cipher, sealer: Sealer) -> None:
        self._rows, self._cipher, self._sealer = rows, cipher, sealer
        self._departments: dict[int, str] = {}

    def row(self, family: str, key: bytes, row: bytes) -> bytes:
        """The same row under the present generation. Raises what opening it raises."""
        if family == "receipts":
            receipts = receipt_rows.decode(row, key, RUN.unpack(key)[1], self._cipher)
            return receipt_rows.encode(receipts, key, self._sealer)
        if family != "payloads":
            return self._sealer.seal(family, key, self._cipher.open(family, key, row))
        workflow_id = RUN.unpack(key)[1]
        path = run_path(row, workflow_id)
        raw = self._cipher.open(family, key, row, workflow_id=workflow_id)
        if path is None and row[:1] == MARK:
            return self._sealer.seal(family, key, raw)
        assert self._cipher.keys is not None
        scope = path.scope if path else self._cipher.keys.scope_of(self._department_of(workflow_id))
        if self._cipher.keys.is_doomed(scope):
            raise DataErased("the department is being erased")
        return self._sealer.seal_at(family, key, raw, scope, workflow_id)

    def _department_of(self, workflow_id: int) -> str:
        """As the run's first receipt tells it: rows in clear do not say whose they are."""
        if workflow_id not in self._departments:
            key = run_key(workflow_id, 0)
            row = self._rows.get("receipts", key)
            first = receipt_rows.decode(row, key, workflow_id, self._cipher)[0].receipt() if row else None
            detail = None if first is None else first.typed_detail()
            self._departments[workflow_id] = detail.department if isinstance(detail, Submitted) else ""
        return self._departments[workflow_id]


def estimated_rows(rows: Rows) -> int:
    """About how many rows there are to look at."""
    return sum(rows.estimated_rows(family) for family in FAMILIES)
