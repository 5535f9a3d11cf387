"""The entry point of Alembic, which runs the migrations on the caller's connection."""

from alembic import context

from hpo.database.schema import VERSION_TABLE
from hpo.database.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, version_table=VERSION_TABLE
)
context.run_migrations()
