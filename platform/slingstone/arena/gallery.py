"""What the arena does, without HTTP and without Ray: pictures once, pairs, votes, results."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from slingstone.arena.errors import Refused
from slingstone.arena.pairs import Asked, next_pair
from slingstone.arena.results import duels_of, results
from slingstone.arena.store import Drawing, Store, Vote, drawing_key
from slingstone.arena.tokens import Pair, PairTokens, new_vote
from slingstone.config.arena import Arena
from slingstone.preferences.table import Choice


@dataclass(frozen=True)
class Drawn:
    """A picture as PNG, and what it took: `seconds` is its share of the pass that drew it."""

    png: bytes
    seconds: float
    network_evaluations: int


@dataclass(frozen=True)
class Identity:
    """What decides a generator's pictures beside prompt and seed, as votes record it."""

    weights: str
    steps: int
    sampler: str


Side = Literal["left", "right", "tie", "both_bad"]
Draw = Callable[[Asked], Awaitable[Drawn]]
Score = Callable[[bytes, str], Awaitable[Mapping[str, float]]]
LATELY = 8
"""A voter is not asked again about his last so many pairs."""


class Gallery:
    """One arena at work.

    Args:
        arena: its configuration.
        prompts: what comparisons draw.
        identities: of each generator, by name.
        store: votes and pictures.
        tokens: of pairs.
        draw: has a picture drawn.
        score: has a picture judged.
    """

    def __init__(
        self,
        arena: Arena,
        prompts: Sequence[str],
        identities: Mapping[str, Identity],
        store: Store,
        tokens: PairTokens,
        draw: Draw,
        score: Score,
    ) -> None:
        self.arena, self.prompts, self.identities, self.store = arena, prompts, identities, store
        self._tokens, self._draw, self.score = tokens, draw, score
        self._chance = random.Random()
        self._votes = _Votes(store)

    def about(self) -> dict[str, Any]:
        """Return what a page needs to know at first."""
        entries = [
            {"name": entry.name, "steps": self.identities[entry.name].steps, "parameters": entry.parameters}
            for entry in self.arena.generators
        ]
        return {
            "name": self.arena.name,
            "generators": entries,
            "prompts": list(self.prompts[:50]),
            "typed_prompts": self.arena.typed_prompts,
            "max_prompt_characters": self.arena.door.max_prompt_characters,
            "rewards": [entry.name for entry in self.arena.rewards.services],
            "votes": self.store.count(),
        }

    async def drawn(self, asked: Asked) -> tuple[str, Drawing]:
        """Return the key and the facts of a picture, which is drawn unless it was before.

        Raises:
            Refused: there is no such generator, or the prompt is not one of the arena's where it takes no others.
        """
        if asked.model not in self.identities:
            raise Refused(f"generator: is none of {', '.join(self.identities)}")
        if not self.arena.typed_prompts and asked.prompt not in self.prompts:
            raise Refused("prompt: this arena draws its own prompts only; choose one of them")
        identity = self.identities[asked.model]
        key = drawing_key(asked.prompt, identity.weights, asked.seed)
        known = await asyncio.to_thread(self.store.drawing, key)
        if known is None:
            made = await self._draw(asked)
            known = await asyncio.to_thread(self._keep, key, asked, identity, made)
        return key, known

    async def pair(self, voter: str, prompt: str | None = None) -> dict[str, Any]:
        """Hand out two pictures to be compared, of a prompt of the arena's choice if none is given."""
        votes = await asyncio.to_thread(self._votes.now)
        own = [vote for vote in votes if vote["voter"] == voter]
        counts = Counter(_pair_of(vote) for vote in own)
        once = [pair for vote in own[:-LATELY] if counts[pair := _pair_of(vote)] == 1]
        if prompt is None and once and self._chance.random() < self.arena.pairs.again:
            pair = self._chance.choice(once)
            vote = next(vote for vote in own if _pair_of(vote) == pair)
            left = "second" if vote["shown_left"] == "first" else "first"
            again = {"first": vote["first_key"], "second": vote["second_key"], "shown_left": left}
            return self._handed(Pair(vote=new_vote(), voter=voter, **again))
        prompts = self.prompts if prompt is None else [prompt]
        chosen = next_pair(self.arena.pairs, list(self.identities), prompts, duels_of(votes), self._chance)
        (first, _), (second, _) = await asyncio.gather(*(self.drawn(asked) for asked in chosen))
        # `next_pair` shuffled the two; which stands on the left is shuffled by itself, so that it can be checked.
        left = self._chance.choice(("first", "second"))
        return self._handed(Pair(vote=new_vote(), voter=voter, first=first, second=second, shown_left=left))

    def vote(self, token: str, choice: Side, seconds: float | None) -> dict[str, Any]:
        """Take a vote on a pair that was handed out; return who drew what.

        Raises:
            Refused: the token is not this arena's.
            Contradicted: the pair was voted on, otherwise.
        """
        pair = self._tokens.pair(token)
        sides = ("first", "second") if pair.shown_left == "first" else ("second", "first")
        chosen: Mapping[Side, Choice] = {"left": sides[0], "right": sides[1], "tie": "tie", "both_bad": "both_bad"}
        self.store.take(Vote(pair.vote, pair.first, pair.second, chosen[choice], pair.voter, pair.shown_left, seconds))
        left, right = self._shown(pair)
        return {
            "vote": pair.vote,
            "left": {"generator": left.model, "seconds": left.seconds, "seed": left.seed},
            "right": {"generator": right.model, "seconds": right.seconds, "seed": right.seed},
            "votes": self.store.count(pair.voter),
        }

    def take_back(self, token: str) -> dict[str, Any]:
        """Leave a vote out, and hand out its pair again.

        Raises:
            Refused: the token is not this arena's, or was not voted with.
        """
        pair = self._tokens.pair(token)
        if not self.store.take_back(pair.vote):
            raise Refused("token: its pair has no vote; vote first")
        return self._handed(pair.model_copy(update={"vote": new_vote()}))

    def results(self) -> dict[str, Any]:
        """Return what the votes say."""
        return results(self._votes.now(), list(self.identities))

    def _handed(self, pair: Pair) -> dict[str, Any]:
        left, right = self._shown(pair)
        return {
            "token": self._tokens.token(pair),
            "prompt": left.prompt,
            "left": left.digest,
            "right": right.digest,
            "votes": self.store.count(pair.voter),
        }

    def _shown(self, pair: Pair) -> tuple[Drawing, Drawing]:
        first, second = self.store.drawing(pair.first), self.store.drawing(pair.second)
        if first is None or second is None:
            raise Refused("token: a picture of its pair is gone; ask for another pair")
        return (first, second) if pair.shown_left == "first" else (second, first)

    def _keep(self, key: str, asked: Asked, identity: Identity, made: Drawn) -> Drawing:
        about = (identity.weights, asked.seed, identity.steps, identity.sampler, made.seconds, made.network_evaluations)
        self.store.keep_drawing(key, Drawing(self.store.keep_picture(made.png), asked.prompt, asked.model, *about))
        kept = self.store.drawing(key)  # another replica may have drawn it, too, and the first one stays
        assert kept is not None
        return kept


def _pair_of(vote: Mapping[str, Any]) -> frozenset[str]:
    return frozenset((vote["first_key"], vote["second_key"]))


class _Votes:
    """All votes that stand, of which only new ones are read again."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._read: list[dict[str, Any]] = []
        self._taken_back = 0

    def now(self) -> list[dict[str, Any]]:
        with self._lock:
            taken_back = self._store.taken_back()
            if taken_back != self._taken_back:
                self._read, self._taken_back = [], taken_back
            self._read += self._store.votes(self._read[-1]["number"] if self._read else 0)
            if len(self._read) != self._store.count():  # of two votes at once the later number may come first
                self._read = self._store.votes()
            return list(self._read)
