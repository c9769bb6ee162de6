"""The error tree: what can go wrong, as one table.

    KnhkError
    ├── InvalidInput    what was sent is wrong; sending it again cannot help            HTTP 400/422, exit 2
    │   ├── InvalidDescriptor, InvalidInputs, InvalidExpression, InvalidConfiguration, InvalidParameter,
    │       PayloadTooLarge, BlobMismatch
    ├── Refused         understood and not allowed, now or at all                       HTTP 403/429, exit 3
    │   ├── Overloaded (retryable), CovenantViolated, SignatureRefused
    ├── NotFound        no such thing                                                   HTTP 404, exit 4
    │   ├── WorkflowNotFound, ReceiptNotFound, DefinitionNotFound, DataErased, WorkflowPruned, BlobNotFound
    ├── Conflict        it contradicts what already happened                            HTTP 409, exit 5
    │   ├── IdempotencyConflict, IllegalTransition, Fenced, DataDirectoryInUse, DefinitionConflict, LeaseLost,
    │       IncompatibleVersion
    ├── Unavailable     a part is down; retry later (retryable)                         HTTP 503, exit 6
    │   ├── StorageUnavailable, DiskFull, ShuttingDown, ServerUnreachable, BackupUnavailable,
    │       CoordinationUnavailable, PartitionMoving, NodeGone; not retryable: Unsupported, EncryptionKeyUnavailable
    └── Corrupt         stored data is not what was written; halt, never retry          HTTP 500, exit 7
        ├── ReceiptCorrupt, JournalCorrupt, JournalMissing, BackupCorrupt, KeyRingCorrupt

Each leaf has a stable code, a page in docs/errors.md and a hint that says what to do next.
"""

from collections.abc import Sequence
from typing import ClassVar

import msgspec


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong in an input. Lines and columns count from 1; 0 means unknown."""

    message: str
    path: str = ""
    line: int = 0
    column: int = 0
    suggestion: str = ""

    def __str__(self) -> str:
        where = f"line {self.line}, column {self.column}: " if self.line else ""
        at = f"{self.path}: " if self.path else ""
        meant = f" (did you mean {self.suggestion!r}?)" if self.suggestion else ""
        return f"{where}{at}{self.message}{meant}"


class KnhkError(Exception):
    """Base of every error that KNHK raises on purpose."""

    code: ClassVar[str] = "KNHK-0000"
    title: ClassVar[str] = "KNHK error"
    hint: ClassVar[str] = ""
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        problems: Sequence[Problem] = (),
        retry_after_s: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)
        self.retry_after_s = retry_after_s
        self.advice = self.hint if hint is None else hint


class InvalidInput(KnhkError):
    code, title = "KNHK-1000", "Invalid input"


class InvalidDescriptor(InvalidInput):
    code, title = "KNHK-1001", "Invalid workflow descriptor"
    hint = "Correct the places named above and check them with `knhk workflow validate FILE`."


class InvalidInputs(InvalidInput):
    code, title = "KNHK-1002", "Workflow inputs do not match their schema"
    hint = "Compare the inputs that were sent with `spec.inputs` of the descriptor."


class InvalidExpression(InvalidInput):
    code, title = "KNHK-1003", "Invalid expression"
    hint = "Expressions are CEL over `inputs`, `steps.<name>.output` and `run`; see docs/descriptor.md."


class InvalidConfiguration(InvalidInput):
    code, title = "KNHK-1004", "Invalid configuration"
    hint = "See the effective values and where each came from with `knhk config show`."


class InvalidParameter(InvalidInput):
    code, title = "KNHK-1005", "Invalid request parameter"
    hint = "See /openapi.json for what the route takes."


class PayloadTooLarge(InvalidInput):
    code, title = "KNHK-1006", "Too large"
    hint = "Pass a reference to the data instead of the data, or raise the limit in the configuration."


class BlobMismatch(InvalidInput):
    code, title = "KNHK-1020", "The bytes are not those of the digest"
    hint = "Send the blob again: it was altered on the way, or the digest is that of other data."


class Refused(KnhkError):
    code, title = "KNHK-2000", "Refused"


class Overloaded(Refused):
    code, title = "KNHK-2001", "Too many workflows"
    retryable = True
    hint = "Try again after the time in Retry-After; limits are set in the `platform` section."


class CovenantViolated(Refused):
    code, title = "KNHK-2002", "Covenant violated"
    hint = "The message names the guard; see docs/covenants.md for what each covenant promises."


class SignatureRefused(Refused):
    code, title = "KNHK-2005", "The signature is not good"
    hint = "Sign the very bytes of the body with the webhook's secret: HMAC-SHA256, in hexadecimal."


class NotFound(KnhkError):
    code, title = "KNHK-3000", "Not found"


class WorkflowNotFound(NotFound):
    code, title = "KNHK-3001", "No such workflow"
    hint = "List the known ones with `knhk workflow list`."


class ReceiptNotFound(NotFound):
    code, title = "KNHK-3002", "No such receipt"
    hint = "List a workflow's receipts with `knhk receipts show ID`."


class DataErased(NotFound):
    code, title = "KNHK-3010", "The data were erased"
    hint = "The key that encrypted them was destroyed on request. Receipts stay and still verify."


class WorkflowPruned(NotFound):
    code, title = "KNHK-3011", "The workflow was pruned"
    hint = "It was past `persistence.retention_days`. If it was archived, see `knhk archive show`."


class DefinitionNotFound(NotFound):
    code, title = "KNHK-3003", "No such definition"
    hint = "List the known ones with `knhk definition list`, and the versions of one with `knhk definition show NAME`."


class BlobNotFound(NotFound):
    code, title = "KNHK-3020", "No such blob"
    hint = "Send it first (`knhk blob put FILE`); a blob that no workflow refers to is kept for a day."


class Conflict(KnhkError):
    code, title = "KNHK-4000", "Conflict"


class IdempotencyConflict(Conflict):
    code, title = "KNHK-4001", "Idempotency key was used for another request"
    hint = "Use a new key for a new request; repeat the same body to get the first answer again."


class IllegalTransition(Conflict):
    code, title = "KNHK-4002", "Not possible in this state"
    hint = "Look at the workflow's state with `knhk workflow status ID`."


class Fenced(Conflict):
    code, title = "KNHK-4003", "Partition is owned by another process"
    hint = "Another process took over this partition; this one must stop writing to it."


class DataDirectoryInUse(Conflict):
    code, title = "KNHK-4004", "Data directory is in use"
    hint = "Stop the server that holds it, or use another directory with --data."


class DefinitionConflict(Conflict):
    code, title = "KNHK-4005", "A version of a definition never changes"
    hint = "Put the change as a new version, with a label of its own."


class IncompatibleVersion(Conflict):
    code, title = "KNHK-4006", "Versions that do not work together"
    hint = "Upgrade step by step, one version after the other, all nodes each time; see docs/cluster.md."


class LeaseLost(Conflict):
    code, title = "KNHK-4010", "The lease is over"
    hint = "Drop the result: the attempt was given to another worker, or its run does not wait for it any more."


class Unavailable(KnhkError):
    code, title = "KNHK-5000", "Unavailable"
    retryable = True


class StorageUnavailable(Unavailable):
    code, title = "KNHK-5001", "The store cannot be written"
    hint = "Nothing acknowledged is lost. Look at /health/detailed and the server's log for the cause."


class DiskFull(Unavailable):
    code, title = "KNHK-5002", "The disk is full"
    hint = "Free space on the disk of `persistence.path`; KNHK goes on by itself when there is room."


class ShuttingDown(Unavailable):
    code, title = "KNHK-5003", "The server is shutting down"
    hint = "Send the request again in a moment, or to another node."


class ServerUnreachable(Unavailable):
    code, title = "KNHK-5004", "No KNHK server answers"
    hint = "Start one with `knhk serve`, or say where it is: --server or KNHK_SERVER, --operations or KNHK_OPERATIONS."


class Unsupported(Unavailable):
    code, title = "KNHK-5005", "Not part of this version"
    retryable = False
    hint = "docs/architecture.md lists what is built."


class EncryptionKeyUnavailable(Unavailable):
    code, title = "KNHK-5010", "The encryption key is not available"
    retryable = False
    hint = "Give the key that the data were encrypted with in `persistence.encryption_key`; see docs/encryption.md."


class BackupUnavailable(Unavailable):
    code, title = "KNHK-5006", "Backups cannot be reached"
    hint = "Check the address, the credentials (AWS_ACCESS_KEY_ID and so on) and the network, then try again."


class CoordinationUnavailable(Unavailable):
    code, title = "KNHK-5020", "etcd does not answer"
    hint = "What runs goes on until the leases end, and nothing is lost then. Look at etcd's members and the network."


class PartitionMoving(Unavailable):
    code, title = "KNHK-5021", "The partition is moving"
    hint = "Send the request again in a moment: another node of the cluster is about to own the workflow."


class NodeGone(Unavailable):
    code, title = "KNHK-5022", "The node that has the journal is gone"
    hint = "Start that node again: its runs go on from its journal. `cluster.takeover` lets others restore it."


class Corrupt(KnhkError):
    code, title = "KNHK-6000", "Stored data is corrupt"


class ReceiptCorrupt(Corrupt):
    code, title = "KNHK-6001", "A receipt or payload does not verify"
    hint = "Keep the data directory as it is, run `knhk verify --full`, and restore from a backup."


class JournalCorrupt(Corrupt):
    code, title = "KNHK-6002", "The journal is damaged"
    hint = "Keep the data directory as it is, run `knhk verify --full`, and restore from a backup."


class JournalMissing(Corrupt):
    code, title = "KNHK-6004", "The journal of a partition is missing"
    hint = "Put the directory back, or restore it: `knhk recover --data DIRECTORY --segments PLACE/partition-N`."


class BackupCorrupt(Corrupt):
    code, title = "KNHK-6003", "A snapshot, backup or segment is not what was written"
    hint = "Nothing was changed. Take another one: `knhk backup list` shows them, `knhk backup verify` checks one."


class KeyRingCorrupt(Corrupt):
    code, title = "KNHK-6010", "The key ring is damaged"
    hint = "Put back the copy of the key ring that was made after its last change; see docs/encryption.md."


def by_code() -> dict[str, type[KnhkError]]:
    """Every error by its code."""
    found: dict[str, type[KnhkError]] = {}
    ahead: list[type[KnhkError]] = [KnhkError]
    while ahead:
        kind = ahead.pop()
        found[kind.code] = kind
        ahead += kind.__subclasses__()
    return found
