"""Alembic's revisions of the arena's tables, oldest first."""
