"""Whether the blobs that a journal refers to are there, and are what their digests say.

Step outputs and the inputs of runs count: what they refer to was there when they came in, and stays while they do.
"""

from collections.abc import Iterator

from knhk.domain.blob import digests_in
from knhk.domain.errors import BlobNotFound, Corrupt, DataErased, EncryptionKeyUnavailable, Unavailable
from knhk.domain.identifier import to_text
from knhk.persistence.blob_area import BlobArea
from knhk.persistence.scanner import Progress
from knhk.persistence.verification import INPUT, OUTPUT, Report


def references(rows: Iterator[tuple[int, int, int, bytes]]) -> Iterator[tuple[int, str]]:
    """The runs and the digests that they refer to, of the rows of JournalScanner.scan_payloads."""
    for workflow_id, seq, slot, raw in rows:
        if slot == OUTPUT or (slot == INPUT and seq == 0):
            for digest in digests_in(raw):
                yield workflow_id, digest


def check_blobs(area: BlobArea, used: dict[str, int], report: Report, progress: Progress) -> None:
    """Read every blob of `used`, which has a run for each digest; what is wrong goes to the report."""
    for number, (digest, workflow_id) in enumerate(used.items()):
        name = f"{to_text(workflow_id)}: its blob {digest}"
        try:
            for _ in area.pieces(digest):
                pass
        except BlobNotFound:
            report.note("missing", f"{name} is missing")
        except EncryptionKeyUnavailable:
            report.locked += 1
        except DataErased:
            report.note("corrupt", f"{name} cannot be read: its key was destroyed")
        except (Corrupt, Unavailable) as error:
            report.note("corrupt", f"{name}: {error.message}")
        progress("blobs", number + 1, len(used))
