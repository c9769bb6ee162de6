"""The exit codes, one table; docs/cli.md shows it."""

from typing import Final

from knhk.domain import errors

OK: Final = 0
FAILED: Final = 1
INTERRUPTED: Final = 130

FAMILIES: Final[dict[type[errors.KnhkError], int]] = {
    errors.InvalidInput: 2,
    errors.Refused: 3,
    errors.NotFound: 4,
    errors.Conflict: 5,
    errors.Unavailable: 6,
    errors.Corrupt: 7,
}

MEANINGS: Final[dict[int, str]] = {
    OK: "done, and what was asked about is good",
    FAILED: "done, and the result is bad: the workflow did not complete, or the receipts do not verify",
    2: "invalid input: the command line, a descriptor, inputs, or the configuration",
    3: "refused: limits are reached, or a covenant forbids it",
    4: "not found: no such workflow, receipt, file or data directory",
    5: "conflict: not possible in this state, or the data directory is in use",
    6: "unavailable: the server does not answer, the store cannot be written, or the disk is full",
    7: "stored data are corrupt",
    INTERRUPTED: "interrupted with Ctrl-C",
}


def of(error: errors.KnhkError) -> int:
    """The exit code for an error."""
    return next((code for family, code in FAMILIES.items() if isinstance(error, family)), FAILED)
