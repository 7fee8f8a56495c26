"""Drawings, votes on pairs of them, and votes that were taken back."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "drawings",
        sa.Column("drawing", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("model", sa.String(200)),
        sa.Column("weights", sa.String(200)),
        sa.Column("seed", sa.BigInteger),
        sa.Column("steps", sa.Integer),
        sa.Column("sampler", sa.String(200)),
        sa.Column("seconds", sa.Float),
        sa.Column("network_evaluations", sa.Integer),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "votes",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("vote", sa.String(200), nullable=False, unique=True),
        sa.Column("first", sa.String(64), sa.ForeignKey("drawings.drawing"), nullable=False),
        sa.Column("second", sa.String(64), sa.ForeignKey("drawings.drawing"), nullable=False),
        sa.Column("choice", sa.String(20), nullable=False),
        sa.Column("shown_left", sa.String(20)),
        sa.Column("voter", sa.String(200), nullable=False),
        sa.Column("seconds", sa.Float),
        sa.Column("time", sa.DateTime(timezone=True)),
    )
    op.create_index("votes_of_voter", "votes", ["voter"])
    op.create_table(
        "taken_back",
        sa.Column("vote", sa.String(200), sa.ForeignKey("votes.vote"), primary_key=True),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """Drop the tables, and all votes with them."""
    for name in ("taken_back", "votes", "drawings"):
        op.drop_table(name)
