"""What PostgreSQL's errors, and those of the way to it, mean for the journal."""

import ssl
from typing import Final

import asyncpg

from knhk.domain.errors import DiskFull, InvalidConfiguration, JournalCorrupt, KnhkError, StorageUnavailable

CONNECTION_LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    OSError,
    TimeoutError,
)
"""The connection is gone or the server is going; another attempt on a new connection may succeed."""

FAILURES: Final = (*CONNECTION_LOST, asyncpg.PostgresError)
"""All that a call of asyncpg raises when it fails."""

_DAMAGED: Final = (
    asyncpg.DataCorruptedError,
    asyncpg.IndexCorruptedError,
    asyncpg.IntegrityConstraintViolationError,  # a slice or block stands where the journal says that none is
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
)
_MISCONFIGURED: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
    ssl.SSLCertVerificationError,
)


def translated(error: BaseException, where: str, doing: str, *, opening: bool = False) -> KnhkError:
    """The KNHK error for one of PostgreSQL's; `doing` is what was tried, for the message.

    A refused login is a mistake in the configuration when the store is opened. Later it is trouble that passes, as
    while a managed service fails over.
    """
    if isinstance(error, KnhkError):
        return error
    text = str(error) or type(error).__name__
    message = f"{where}: {doing}: {text}"
    if isinstance(error, asyncpg.DiskFullError):
        return DiskFull(message, hint="Free space on PostgreSQL's disk; KNHK goes on by itself when there is room.")
    if isinstance(error, _DAMAGED):
        return JournalCorrupt(message, hint="Look at PostgreSQL's log, run `knhk verify --full`, restore a backup.")
    if opening and isinstance(error, _MISCONFIGURED):
        return InvalidConfiguration(message, hint="Correct `persistence.url`, or what PostgreSQL allows this user.")
    if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
        return StorageUnavailable(f"{where}: {doing}: the server is read-only, a standby perhaps")
    return StorageUnavailable(message)
