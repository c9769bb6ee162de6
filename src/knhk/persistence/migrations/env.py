"""What Alembic runs: migrations are written out as SQL, which postgres_schema.py executes."""

from alembic import context

from knhk.persistence.postgres_schema import VERSION_TABLE

context.configure(dialect_name="postgresql", version_table=VERSION_TABLE, transactional_ddl=False)
context.run_migrations()
