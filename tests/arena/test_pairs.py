import random
from collections import Counter

import numpy as np
import pytest

from slingstone.arena.pairs import most_telling, next_pair
from slingstone.config.arena import Pairs
from slingstone.evaluation.strength import Duel, counted, fit

MODELS = ["a", "b", "c"]
PROMPTS = [f"prompt {number}" for number in range(10)]


def test_by_chance_every_pair_and_prompt_gets_as_many_votes_and_no_side_is_preferred():
    draw, duels = random.Random(0), []
    for _ in range(300):
        first, second = next_pair(Pairs(), MODELS, PROMPTS, duels, draw)
        assert first.prompt == second.prompt
        assert first.seed == second.seed < 4
        duels.append(Duel(first.model, second.model, "first", "v", first.prompt))
    assert set(Counter(frozenset((duel.first, duel.second)) for duel in duels).values()) == {100}
    assert set(Counter(duel.prompt for duel in duels).values()) == {30}
    firsts = Counter(duel.first for duel in duels)
    assert all(70 < firsts[model] < 130 for model in MODELS)  # 100 expected, deviation 8


def test_one_generator_meets_itself_by_another_seed():
    first, second = next_pair(Pairs(), ["a"], PROMPTS, [], random.Random(0))
    assert first.model == second.model == "a"
    assert first.seed != second.seed
    shares = [next_pair(Pairs(within=0.3), MODELS, PROMPTS, [], random.Random(seed)) for seed in range(500)]
    assert sum(one.model == two.model for one, two in shares) == pytest.approx(150, abs=40)


def test_the_telling_pair_is_of_equals_rather_than_of_one_that_always_wins():
    duels = [Duel("a", loser, "first", "v", "p") for loser in ("b", "c") for _ in range(20)]
    assert set(most_telling(MODELS, duels, random.Random(0))) == {"b", "c"}
    duels += [Duel("b", "c", winner, "v", "p") for winner in ("first", "second") for _ in range(400)]
    assert set(most_telling(MODELS, duels, random.Random(0))) != {"b", "c"}


def test_telling_pairs_find_the_order_with_fewer_votes_than_random_ones():
    log = np.linspace(-2.5, 2.5, 8)
    models = [f"model {number}" for number in range(len(log))]

    def error(choose, seed, count=120):
        draw, duels = random.Random(seed), []
        for _ in range(count):
            one, two = next_pair(Pairs(choose=choose), models, PROMPTS, duels, draw)
            gap = log[models.index(one.model)] - log[models.index(two.model)]
            won = draw.random() < 1 / (1 + np.exp(-gap))
            duels.append(Duel(one.model, two.model, "first" if won else "second", "v", one.prompt))
        return float(np.abs(fit(*counted(duels, models)).log - log).mean())

    seeds = range(4)
    assert np.mean([error("active", seed) for seed in seeds]) < np.mean([error("random", seed) for seed in seeds])
