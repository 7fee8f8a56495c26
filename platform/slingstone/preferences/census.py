"""What a set of votes holds: counts, duplicates, contradictions, agreement between voters, and a look at its sides."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from slingstone.preferences.table import Choice, Preference

Pair = bytes
Side = Literal["low", "high", "even"]


@dataclass
class Census:
    """Counts of votes that were taken one by one; holds hashes, and no picture.

    Attributes:
        duplicates: votes that say again what the same voter said of the same pair of the same prompt.
        repeated_ids: votes with the id of an earlier one.
    """

    votes: int = 0
    duplicates: int = 0
    repeated_ids: int = 0
    choices: Counter[Choice] = field(default_factory=Counter)
    voters: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    left: Counter[bool] = field(default_factory=Counter)
    _prompts: set[bytes] = field(default_factory=set)
    _pictures: set[str] = field(default_factory=set)
    _ids: set[bytes] = field(default_factory=set)
    _said: dict[Pair, dict[str, set[Side]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))

    @classmethod
    def of(cls, preferences: Iterable[Preference]) -> "Census":
        """Take every vote."""
        census = cls()
        for vote in preferences:
            census.take(vote)
        return census

    def take(self, vote: Preference) -> None:
        """Take a vote."""
        self.votes += 1
        self.choices[vote.choice] += 1
        self.voters[vote.voter] += 1
        self.models[" / ".join(sorted(picture.model or "unknown" for picture in vote.pictures))] += 1
        if vote.shown_left is not None and vote.choice in ("first", "second"):
            self.left[vote.choice == vote.shown_left] += 1
        self._prompts.add(_hash(vote.prompt))
        self._pictures |= {picture.digest for picture in vote.pictures}
        vote_id = _hash(vote.vote_id)
        self.repeated_ids += vote_id in self._ids
        self._ids.add(vote_id)
        said = self._said[pair_of(vote)][vote.voter]
        self.duplicates += (side := _side(vote)) in said
        said.add(side)

    @property
    def contradictions(self) -> int:
        """Pairs of which one voter said different things."""
        return sum(any(len(sides) > 1 for sides in voters.values()) for voters in self._said.values())

    @property
    def disputed(self) -> int:
        """Pairs of which different voters said different things."""
        return sum(len(set().union(*voters.values())) > 1 for voters in self._said.values() if len(voters) > 1)

    @property
    def agreement(self) -> float | None:
        """How often two voters who saw the same pair, and both chose, chose the same; None if there are no such."""
        same = pairs = 0
        for voters in self._said.values():
            chose = Counter(side for sides in voters.values() if len(sides) == 1 for side in sides if side != "even")
            count = chose.total()
            pairs += count * (count - 1) // 2
            same += sum(number * (number - 1) // 2 for number in chose.values())
        return same / pairs if pairs else None

    def table(self) -> Mapping[str, str]:
        """Return what is known, ready to be shown."""
        shown = {"votes": str(self.votes), "prompts": str(len(self._prompts)), "pictures": str(len(self._pictures))}
        shown |= {"pairs": str(len(self._said)), "voters": str(len(self.voters))}
        shown |= {f"chose {choice}": str(count) for choice, count in sorted(self.choices.items())}
        if total := self.left.total():
            shown["chose the left one"] = f"{self.left[True] / total:.1%} of {total}"
        shown |= {f"models {pair}": str(count) for pair, count in self.models.most_common(10)}
        shown |= {"duplicates": str(self.duplicates), "repeated ids": str(self.repeated_ids)}
        shown |= {"pairs that a voter contradicts": str(self.contradictions), "pairs in dispute": str(self.disputed)}
        agreement = "unknown: no pair has two voters" if self.agreement is None else f"{self.agreement:.1%}"
        return shown | {"voters agree": agreement}

    def shared_prompts(self, other: "Census") -> int:
        """Return how many prompts both have."""
        return len(self._prompts & other._prompts)

    def refuse_useless(self, where: str) -> None:
        """Refuse votes of which nothing can be learnt.

        Raises:
            ValueError: there are none, or all say the same.
        """
        if not self.votes:
            raise ValueError(f"{where}: holds no votes; give a file with some")
        if len(self.choices) == 1:
            (choice,) = self.choices
            remedy = "shuffle which picture comes first, and see that both can be chosen"
            raise ValueError(f"{where}: all {self.votes} votes are {choice!r}, so nothing can be learnt; {remedy}")


def pair_of(vote: Preference) -> Pair:
    """Return what votes on the same two pictures of the same prompt share, whichever is the first."""
    return _hash("/".join([*sorted(picture.digest for picture in vote.pictures), vote.prompt]))


def _side(vote: Preference) -> Side:
    """Return which of the two was chosen, independently of their order."""
    if vote.choice not in ("first", "second"):
        return "even"
    low = "first" if vote.first.digest <= vote.second.digest else "second"
    return "low" if vote.choice == low else "high"


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
