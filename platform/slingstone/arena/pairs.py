"""Which two pictures are compared next."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from slingstone.config.arena import Pairs
from slingstone.evaluation.strength import PRIOR, Duel, counted, fit


@dataclass(frozen=True)
class Asked:
    """One picture to be drawn."""

    model: str
    prompt: str
    seed: int


def next_pair(
    settings: Pairs, models: Sequence[str], prompts: Sequence[str], duels: Sequence[Duel], draw: random.Random
) -> tuple[Asked, Asked]:
    """Return two pictures of one prompt: of two models by the same noise, or of one model by two seeds.

    Args:
        settings: how to choose.
        models: who may draw.
        prompts: what may be drawn.
        duels: the votes so far.
        draw: chance.
    """
    seen = Counter(duel.prompt for duel in duels)
    fewest = min(seen[prompt] for prompt in prompts)
    prompt = draw.choice([prompt for prompt in prompts if seen[prompt] == fewest])
    if len(models) == 1 or draw.random() < settings.within:
        own = Counter(duel.first for duel in duels if duel.first == duel.second)
        model = min(models, key=lambda name: (own[name], draw.random()))
        one, two = draw.sample(range(max(2, settings.seeds)), 2)
        return Asked(model, prompt, one), Asked(model, prompt, two)
    chosen = most_telling(models, duels, draw) if settings.choose == "active" else least_seen(models, duels, draw)
    seed = draw.randrange(settings.seeds)
    first, second = draw.sample(chosen, 2)
    return Asked(first, prompt, seed), Asked(second, prompt, seed)


def least_seen(models: Sequence[str], duels: Sequence[Duel], draw: random.Random) -> tuple[str, str]:
    """Return the two models that met least often."""
    met = Counter(frozenset((duel.first, duel.second)) for duel in duels)
    return min(combinations(models, 2), key=lambda pair: (met[frozenset(pair)], draw.random()))


def most_telling(models: Sequence[str], duels: Sequence[Duel], draw: random.Random) -> tuple[str, str]:
    """Return the two models whose difference the next vote tells most about.

    A vote on i and j has the information `p (1 - p)` about their difference, whose variance V comes from the Fisher
    information of all votes so far; it lowers the entropy by `log(1 + p (1 - p) V) / 2`, which is largest here.
    Source: MacKay 1992, "Information-based objective functions for active data selection", eq. 8 for this likelihood.
    """
    wins, ties = counted([duel for duel in duels if duel.first != duel.second], models)
    log = fit(wins, ties).log
    chance = 1 / (1 + np.exp(log[None] - log[:, None]))
    weights = (wins + wins.T + ties) * chance * (1 - chance)
    # An improper prior on differences would make the first choices infinite; a tenth of a vote a pair does not.
    information = np.diag(weights.sum(1)) - weights + PRIOR * np.eye(len(models))
    spread = np.linalg.inv(information)

    def gain(pair: tuple[int, int]) -> float:
        i, j = pair
        variance = spread[i, i] + spread[j, j] - 2 * spread[i, j]
        return float(chance[i, j] * (1 - chance[i, j]) * variance)

    i, j = max(combinations(range(len(models)), 2), key=lambda pair: (gain(pair), draw.random()))
    return models[i], models[j]
