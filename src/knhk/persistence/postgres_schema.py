"""The tables in PostgreSQL and their versions. Alembic orders the migrations and writes them as SQL; asyncpg runs them.

Alembic, and SQLAlchemy with it, is only loaded when there is something to migrate, so that a start is quick.
"""

import io
from pathlib import Path
from typing import Final

import asyncpg

from knhk.domain.errors import InvalidConfiguration, Unsupported

VERSION_TABLE: Final = "schema_version"
HEAD: Final = "0002"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
# Not to_regclass and to_regnamespace, which may answer from a cache what was so before the lock was waited for.
_HAS_SCHEMA: Final = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)"
_HAS_TABLE: Final = "SELECT EXISTS (SELECT FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename = $2)"
_LOCK: Final = 0x4B4E484B
"""The advisory lock that keeps two nodes from migrating at once: `KNHK` in ASCII."""


async def check(connection: "asyncpg.Connection[asyncpg.Record]", schema: str) -> None:
    """Raise InvalidConfiguration or Unsupported unless the tables are there, in this version's form."""
    found = await _version(connection, schema)
    if found is None:
        raise InvalidConfiguration(f"there is no KNHK store in schema {schema!r} of this database")
    _refuse_newer(found, schema)
    if found < HEAD:
        raise InvalidConfiguration(
            f"schema {schema!r} has version {found}, and this KNHK reads {HEAD}",
            hint="Start the server once, or `knhk init`: either brings it to this version's form.",
        )


async def migrate(connection: "asyncpg.Connection[asyncpg.Record]", schema: str) -> None:
    """Make the tables, or bring them to this version's form; several nodes may do so at once.

    Raises Unsupported if a newer version of KNHK made them.
    """
    if await _version(connection, schema) == HEAD:
        return
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        found = await _version(connection, schema)
        if found is None and not await connection.fetchval(_HAS_SCHEMA, schema):
            await connection.execute(f"CREATE SCHEMA {schema}")
        if found is not None:
            _refuse_newer(found, schema)
        if found != HEAD:
            await connection.execute(script(found))


def script(from_version: str | None = None) -> str:
    """The SQL that leads from a version (None: nothing is there) to this one; it expects the schema in search_path."""
    from alembic import command
    from alembic.config import Config

    written = io.StringIO()
    settings = Config(output_buffer=written)
    settings.set_main_option("script_location", str(_MIGRATIONS))
    settings.set_main_option("path_separator", "os")
    command.upgrade(settings, f"{from_version or 'base'}:{HEAD}", sql=True)
    return written.getvalue()


async def _version(connection: "asyncpg.Connection[asyncpg.Record]", schema: str) -> str | None:
    if not await connection.fetchval(_HAS_TABLE, schema, VERSION_TABLE):
        return None
    found: str | None = await connection.fetchval(f"SELECT version_num FROM {schema}.{VERSION_TABLE}")
    return found


def _refuse_newer(found: str, schema: str) -> None:
    if found > HEAD:
        raise Unsupported(
            f"schema {schema!r} was made by a newer KNHK: version {found}, and this one knows up to {HEAD}",
            hint="Start the version that made it, or restore a backup that this version made.",
        )
