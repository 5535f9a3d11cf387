"""Run the migrations on the connection that the caller gives."""

from alembic import context

from hpo.storage import VERSION_TABLE, Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, version_table=VERSION_TABLE
)
context.run_migrations()
