"""Simulated voters: the hidden utility with noise, ties, and a few who err more, as votes of the table."""

import io
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations

from PIL import Image

from slingstone.preferences.table import Choice, Picture, Preference
from workbench.recipe.preferences import JUDGE, Candidates
from workbench.recipe.tastes import TASTES

QUALITY = 90
TIE = 0.02
"""Of utilities that differ by less, a voter says that they are equal, or both bad if both are below `BAD`."""
BAD = 0.35
TASTE = 1.0
"""Weight of the voters' taste in standard deviations of the utility."""
START = datetime(2026, 1, 1, tzinfo=UTC)


def with_taste(candidates: Candidates, name: str = "vivid") -> Candidates:
    """Return what voters go by: the utility, and a taste, one of `TASTES`, on which no shipped reward was trained."""
    pleasing = TASTES[name](candidates.pictures.flatten(0, 1).float() / 255).view_as(candidates.utility)
    taste = (pleasing - pleasing.mean()) / pleasing.std()
    return replace(candidates, utility=candidates.utility + TASTE * candidates.utility.std() * taste)


def simulated_votes(
    candidates: Candidates, models: Sequence[str], pairs: int, voters: int, seed: int, votes_per_pair: int = 1
) -> Iterator[Preference]:
    """Yield votes on pairs of a caption's candidates, each by a voter with a sharpness of his own.

    Args:
        candidates: judged pictures of each caption.
        models: name of who drew each candidate of a caption.
        pairs: how many are shown.
        voters: how many take part; one in ten chooses at random.
        seed: of pairs, sides and choices.
        votes_per_pair: how many different voters see each.
    """
    rng = random.Random(seed)
    for pair in range(pairs):
        row = rng.randrange(len(candidates.captions))
        first, second = rng.sample(range(candidates.pictures.shape[1]), 2)
        utilities = [float(candidates.utility[row, slot]) for slot in (first, second)]
        for number, voter in enumerate(rng.sample(range(voters), votes_per_pair), pair * votes_per_pair):
            sharpness = 0.0 if voter % 10 == 9 else JUDGE * (0.5 + voter % 10 / 8)
            yield Preference(
                vote_id=f"simulated-{seed}-{number}",
                prompt=candidates.captions[row],
                first=_picture(candidates, row, first, models[first]),
                second=_picture(candidates, row, second, models[second]),
                choice=_choice(utilities, sharpness, rng),
                voter=f"voter-{voter}",
                time=START + timedelta(seconds=17 * number),
                seconds=round(rng.lognormvariate(1.2, 0.5), 2),
                shown_left=rng.choice(("first", "second")),
            )


def all_votes(candidates: Candidates, seed: int) -> Iterator[Preference]:
    """Yield a vote on every pair of each caption's candidates, all by one voter of the judge's sharpness."""
    rng = random.Random(seed)
    slots = range(candidates.pictures.shape[1])
    for row, caption in enumerate(candidates.captions):
        pictures = [_picture(candidates, row, slot, "candidate", lossless=True) for slot in slots]
        for first, second in combinations(slots, 2):
            utilities = [float(candidates.utility[row, slot]) for slot in (first, second)]
            yield Preference(
                vote_id=f"judge-{seed}-{row}-{first}-{second}",
                prompt=caption,
                first=pictures[first],
                second=pictures[second],
                choice="first" if rng.random() < _chance(utilities, JUDGE) else "second",
                voter="judge",
            )


def utility_foretells(candidates: Candidates, votes: Sequence[Preference]) -> float:
    """Return how many of the votes that choose prefer the picture of the larger hidden utility: nobody does better."""
    prompts = {vote.prompt for vote in votes}
    rows = [row for row, caption in enumerate(candidates.captions) if caption in prompts]
    pictures = {
        _picture(candidates, row, slot, "any").data: float(candidates.utility[row, slot])
        for row in rows
        for slot in range(candidates.pictures.shape[1])
    }
    decided = [vote for vote in votes if vote.choice in ("first", "second")]
    right = [(pictures[v.first.data] > pictures[v.second.data]) == (v.choice == "first") for v in decided]
    return sum(right) / len(right)


def _choice(utilities: list[float], sharpness: float, rng: random.Random) -> Choice:
    gap = utilities[0] - utilities[1]
    if abs(gap) < TIE:
        return "both_bad" if max(utilities) < BAD else "tie"
    return "first" if rng.random() < _chance(utilities, sharpness) else "second"


def _chance(utilities: list[float], sharpness: float) -> float:
    """Return how probably the first is chosen, by Bradley and Terry."""
    return 1 / (1 + math.exp(-sharpness * (utilities[0] - utilities[1])))


def _picture(candidates: Candidates, row: int, slot: int, model: str, lossless: bool = False) -> Picture:
    pixels = candidates.pictures[row, slot].permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY, lossless=lossless)
    return Picture(data=file.getvalue(), model=model)
