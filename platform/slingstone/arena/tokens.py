"""Signed words: a pair that was handed out can be voted on once, by whom it was handed to, and no other pair can."""

import os
import secrets
from pathlib import Path
from typing import Literal

from itsdangerous import BadData, URLSafeTimedSerializer
from pydantic import BaseModel, ConfigDict

from slingstone.arena.errors import Refused

SECRET_VARIABLE = "SLINGSTONE_ARENA_SECRET"
LIFETIME_S = 24 * 3600


class Pair(BaseModel):
    """Two drawings as they were shown, by their keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vote: str
    """Unique; becomes the vote's id."""
    voter: str
    first: str
    second: str
    shown_left: Literal["first", "second"]


class PairTokens:
    """Turns pairs into tokens and back.

    Args:
        secret: the same for all replicas of an arena.
    """

    def __init__(self, secret: str) -> None:
        self._signed = URLSafeTimedSerializer(secret, salt="pair")

    def token(self, pair: Pair) -> str:
        """Return the token of a pair."""
        return self._signed.dumps(pair.model_dump())

    def pair(self, token: str) -> Pair:
        """Return the pair of a token.

        Raises:
            Refused: it is no token of this arena, or older than a day.
        """
        try:
            return Pair.model_validate(self._signed.loads(token, max_age=LIFETIME_S))
        except BadData:
            raise Refused("token: is none of this arena's, or a day old; ask for another pair") from None


def new_vote() -> str:
    """Return an id for a pair's vote."""
    return secrets.token_hex(16)


def arena_secret(directory: Path) -> str:
    """Return the environment's SLINGSTONE_ARENA_SECRET, or one that is made once and kept in the arena's directory."""
    if given := os.environ.get(SECRET_VARIABLE):
        return given
    file = directory / "secret"
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".secret-{secrets.token_hex(8)}"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(secrets.token_hex(32))
    try:
        os.link(partial, file)  # fails if another replica was first
    except FileExistsError:
        pass
    finally:
        partial.unlink()
    return file.read_text()
