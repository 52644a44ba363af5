"""Run by Alembic: migrates over the connection that `migrate` hands in, in one transaction."""

from alembic import context

from cache_server.entries.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter most things in place: Alembic copies the table instead.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
