"""MLflow behind a few methods: the driver opens and ends a run, rank 0 logs to it by its id."""

from slingstone.config.credentials import redacted
from slingstone.tracking.journal import journal_of
from slingstone.tracking.run import Run
from slingstone.tracking.store import (
    create_run,
    end_abandoned,
    open_run,
    parent_run,
    ready,
    reopened,
    tracking_uri,
)

__all__ = [
    "Run",
    "create_run",
    "end_abandoned",
    "journal_of",
    "open_run",
    "parent_run",
    "ready",
    "redacted",
    "reopened",
    "tracking_uri",
]
