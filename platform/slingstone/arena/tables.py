"""The arena's tables. They are only ever added to; migrations/ makes them in a database."""

from sqlalchemy import BigInteger, Column, DateTime, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

METADATA = MetaData()

DRAWINGS = Table(
    "drawings",
    METADATA,
    Column("drawing", String(64), primary_key=True),  # hash of all that decides the picture
    Column("digest", String(64), nullable=False),  # of the picture's bytes: its file's name
    Column("prompt", Text, nullable=False),
    Column("model", String(200)),
    Column("weights", String(200)),
    Column("seed", BigInteger),
    Column("steps", Integer),
    Column("sampler", String(200)),
    Column("seconds", Float),
    Column("network_evaluations", Integer),
    Column("time", DateTime(timezone=True), nullable=False),
)

VOTES = Table(
    "votes",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),  # in the order of their arrival
    Column("vote", String(200), nullable=False, unique=True),  # of the pair that was handed out: a pair has one vote
    Column("first", String(64), ForeignKey("drawings.drawing"), nullable=False),
    Column("second", String(64), ForeignKey("drawings.drawing"), nullable=False),
    Column("choice", String(20), nullable=False),
    Column("shown_left", String(20)),
    Column("voter", String(200), nullable=False),
    Column("seconds", Float),
    Column("time", DateTime(timezone=True)),
    Index("votes_of_voter", "voter"),
)

TAKEN_BACK = Table(
    "taken_back",
    METADATA,
    Column("vote", String(200), ForeignKey("votes.vote"), primary_key=True),
    Column("time", DateTime(timezone=True), nullable=False),
)
