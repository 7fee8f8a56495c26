"""Runs the revisions on the connection that `store` gives."""

from alembic import context

from slingstone.arena.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
