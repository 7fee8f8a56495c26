"""Votes and pictures, outside of the processes that come and go: a database that is only added to, and files by digest.

What is acknowledged is on disk: every method that writes returns after the commit.
"""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from filelock import FileLock
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from slingstone.arena.errors import Contradicted
from slingstone.arena.tables import DRAWINGS, TAKEN_BACK, VOTES
from slingstone.atomic import replacing
from slingstone.preferences.table import PROVENANCE, Choice, Picture, Preference

LOCK_TIMEOUT_S = 120
_STANDS = VOTES.c.vote.not_in(sa.select(TAKEN_BACK.c.vote))
BUSY_TIMEOUT_MS = 30_000
_ADVISORY_LOCK = 0x51_1965  # any number, the same in every process that migrates


@dataclass(frozen=True)
class Drawing:
    """A picture and what it is of; `digest` names its bytes."""

    digest: str
    prompt: str
    model: str | None = None
    weights: str | None = None
    seed: int | None = None
    steps: int | None = None
    sampler: str | None = None
    seconds: float | None = None
    network_evaluations: int | None = None


@dataclass(frozen=True)
class Vote:
    """A choice between two drawings, which are named by their keys."""

    vote: str
    first: str
    second: str
    choice: Choice
    voter: str
    shown_left: Literal["first", "second"] | None = None
    seconds: float | None = None
    time: datetime | None = None


class Store:
    """The arena's memory.

    Args:
        uri: of the database, for SQLAlchemy; `sqlite:////absolute/file.db` or `postgresql://...`.
        pictures: directory of the pictures, seen by all nodes.

    Raises:
        ValueError: the database does not answer, or is of a later version.
    """

    def __init__(self, uri: str, pictures: Path) -> None:
        self._pictures = pictures
        pictures.mkdir(parents=True, exist_ok=True)
        self._sqlite = uri.startswith("sqlite")
        lock: AbstractContextManager[Any] = nullcontext()
        if self._sqlite:
            file = Path(sa.make_url(uri).database or "")
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{file}.lock", timeout=LOCK_TIMEOUT_S)
        try:
            self._engine: Engine = sa.create_engine(uri, pool_pre_ping=True)
            if self._sqlite:
                event.listen(self._engine, "connect", _durable)
            with lock, self._engine.connect() as connection:
                self._migrate(connection)
        except ImportError as error:
            remedy = "install it, or name a driver that is there, as in postgresql+psycopg2://"
            raise ValueError(f"votes: this database needs the package {error.name}; {remedy}") from None
        except (SQLAlchemyError, OSError) as error:
            shown = sa.make_url(uri).render_as_string(hide_password=True)
            raise ValueError(f"votes = {shown!r}: does not answer; start it, or name another: {_line(error)}") from None

    def _migrate(self, connection: Connection) -> None:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        if not self._sqlite:
            connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
        try:
            command.upgrade(config, "head")
            connection.commit()
        finally:
            if not self._sqlite:
                connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})
                connection.commit()

    def close(self) -> None:
        """Give up the connections."""
        self._engine.dispose()

    # Pictures

    def picture(self, digest: str) -> bytes | None:
        """Return the bytes of a picture, if it is there."""
        try:
            return self._file(digest).read_bytes()
        except FileNotFoundError:
            return None

    def keep_picture(self, data: bytes) -> str:
        """Write a picture down; return its digest."""
        digest = hashlib.sha256(data).hexdigest()
        file = self._file(digest)
        if not file.exists():
            with replacing(file) as partial:
                partial.write_bytes(data)
        return digest

    def drawing(self, key: str) -> Drawing | None:
        """Return what was drawn before, if its picture is still there."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(DRAWINGS).where(DRAWINGS.c.drawing == key)).mappings().first()
        if row is None or not self._file(row["digest"]).exists():
            return None
        return _drawing(row)

    def keep_drawing(self, key: str, drawing: Drawing) -> None:
        """Write down what a picture is of; the first one of a key stays."""
        with self._engine.begin() as connection:
            _insert_once(connection, DRAWINGS, {"drawing": key, "time": _now()} | asdict(drawing))

    # Votes

    def take(self, vote: Vote) -> None:
        """Write a vote down, once, however often it is sent.

        Raises:
            Contradicted: the pair was voted on with another choice.
        """
        row = asdict(vote) | {"time": vote.time or _now()}
        with self._engine.begin() as connection:
            if _insert_once(connection, VOTES, row):
                return
            found = connection.execute(sa.select(VOTES.c.choice).where(VOTES.c.vote == vote.vote)).scalar_one()
        if found != vote.choice:
            raise Contradicted(f"was voted on before ({found}); ask for another pair")

    def take_back(self, vote: str) -> bool:
        """Leave a vote out from now on; return whether there is such a vote."""
        with self._engine.begin() as connection:
            if connection.execute(sa.select(VOTES.c.vote).where(VOTES.c.vote == vote)).first() is None:
                return False
            _insert_once(connection, TAKEN_BACK, {"vote": vote, "time": _now()})
        return True

    def votes(self, after: int = 0) -> list[dict[str, Any]]:
        """Return the votes that stand, in the order of their arrival.

        Their fields are those of `Vote`, and `number`; `first` and `second` are Drawings, `first_key` and `second_key`
        their keys.

        Args:
            after: leaves out votes whose number is not larger.
        """
        one, two = DRAWINGS.alias("one"), DRAWINGS.alias("two")
        columns = [VOTES, *(column.label(f"one_{column.name}") for column in one.c)]
        columns += [column.label(f"two_{column.name}") for column in two.c]
        joined = VOTES.join(one, VOTES.c.first == one.c.drawing).join(two, VOTES.c.second == two.c.drawing)
        query = sa.select(*columns).select_from(joined).where(_STANDS, VOTES.c.number > after)
        query = query.order_by(VOTES.c.number)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            {column.name: row[column.name] for column in VOTES.c}
            | {"first": _drawing(row, "one_"), "second": _drawing(row, "two_")}
            | {"first_key": row["first"], "second_key": row["second"]}
            for row in rows
        ]

    def count(self, voter: str | None = None) -> int:
        """Return how many votes stand, of one voter or of all."""
        query = sa.select(sa.func.count()).select_from(VOTES).where(_STANDS)
        if voter is not None:
            query = query.where(VOTES.c.voter == voter)
        with self._engine.connect() as connection:
            return connection.execute(query).scalar_one()

    def taken_back(self) -> int:
        """Return how many votes were taken back."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(TAKEN_BACK)).scalar_one()

    # The table of preferences

    def preferences(self) -> Iterator[Preference]:
        """Yield the votes that stand as rows of the table of preferences, a picture at a time."""
        for vote in self.votes():
            yield Preference(
                vote_id=vote["vote"],
                prompt=vote["first"].prompt,
                first=self._picture_of(vote["first"]),
                second=self._picture_of(vote["second"]),
                choice=vote["choice"],
                voter=vote["voter"],
                time=vote["time"],
                seconds=vote["seconds"],
                shown_left=vote["shown_left"],
            )

    def add(self, preference: Preference) -> None:
        """Take a vote from the table of preferences, once."""
        keys = []
        for picture in preference.pictures:
            about = picture.model_dump(include=set(PROVENANCE))
            drawing = Drawing(self.keep_picture(picture.data), preference.prompt, **about)
            keys.append(_hash(*astuple(drawing)))
            self.keep_drawing(keys[-1], drawing)
        known = preference.model_dump(include={"choice", "voter", "shown_left", "seconds", "time"})
        self.take(Vote(preference.vote_id, *keys, **known))

    def _picture_of(self, drawing: Drawing) -> Picture:
        data = self.picture(drawing.digest)
        if data is None:
            raise ValueError(f"picture {drawing.digest} is gone from {self._pictures}; put it back")
        about = {name: getattr(drawing, name) for name in PROVENANCE}
        return Picture(data=data, **about)

    def _file(self, digest: str) -> Path:
        assert len(digest) == 64
        assert digest.isalnum()
        return self._pictures / digest[:2] / f"{digest}.png"


def drawing_key(prompt: str, weights: str, seed: int) -> str:
    """Return the name of the picture of a prompt and seed; `weights` covers all else that decides it."""
    return _hash(prompt, weights, seed)


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _insert_once(connection: Connection, table: sa.Table, row: dict[str, Any]) -> bool:
    """Insert a row unless one of its key is there; return whether it was inserted."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return connection.execute(insert(table).values(row).on_conflict_do_nothing()).rowcount == 1


def _durable(connection: Any, _: Any) -> None:
    """SQLite: readers beside a writer, a commit is on the disk, and a writer waits for another."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _drawing(row: Any, prefix: str = "") -> Drawing:
    return Drawing(**{name: row[f"{prefix}{name}"] for name in Drawing.__dataclass_fields__})


def _now() -> datetime:
    return datetime.now(UTC)


def _line(error: BaseException) -> str:
    said = getattr(error, "orig", None) or error
    return " ".join(str(said).split())[:200] if isinstance(error, OperationalError | OSError) else type(error).__name__
