"""Databases for the tests of the `sql` action: a file, and a PostgreSQL of this test session."""

from pathlib import Path

import pytest


def database_urls(kind: str, directory: Path) -> str:
    """A SQLAlchemy URL of an empty database."""
    if kind == "sqlite":
        return f"sqlite:///{directory / 'shop.db'}"
    postgres = pytest.importorskip("tests.services.postgres", reason="PostgreSQL for tests is not there")
    return str(postgres.shared_server().new_database()).replace("postgresql://", "postgresql+psycopg://")
