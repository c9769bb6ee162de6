"""Migrations of the tables in PostgreSQL, run by Alembic; postgres_schema.py says how."""
