"""Who draws what people prefer: strengths of models from votes on pairs, and how sure they are.

Ties are part of the model. Votes of one person, and votes on one prompt, are no independent samples: intervals resample
voters and prompts, not votes.
Source: Davidson 1970, "On extending the Bradley-Terry model to accommodate ties".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import binomtest

from slingstone.evaluation.resampling import crossed, interval_of_mean

Winner = Literal["first", "second", "neither"]
PRIOR = 0.01
"""Precision of a normal prior on log strengths and the log of the tie parameter: one that never lost stays finite."""
RESAMPLES = 200


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Duel:
    """A vote on two models: who drew what, who was preferred, and the clusters that the vote belongs to."""

    first: str
    second: str
    winner: Winner
    voter: str
    prompt: str


@dataclass(frozen=True)
class Strengths:
    """Log strengths with mean 0, and `ties`, Davidson's parameter: 0 is never, 2 is a half of the votes among equals.

    `first` wins with the probability `s_1 / (s_1 + s_2 + ties sqrt(s_1 s_2))`, where `s = exp(log strength)`.
    """

    log: Float[np.ndarray, " model"]
    ties: float


def share(count: int | float, total: int) -> Interval:
    """Return `count / total` with Wilson's interval; of nothing, 0 to 1 around a half."""
    if not total:
        return Interval(0.5, 0.0, 1.0)
    # Halves come from ties; Wilson's interval of the nearest whole numbers is the same to a half of a vote.
    found = binomtest(round(count), total).proportion_ci(method="wilson")
    return Interval(count / total, float(found.low), float(found.high))


def fit(wins: Float[np.ndarray, "model model"], ties: Float[np.ndarray, "model model"]) -> Strengths:
    """Return the most likely strengths.

    Args:
        wins: how often row was preferred to column; weights may be fractions.
        ties: how often neither was, the same both ways.
    """
    one, two = np.triu_indices(len(wins), 1)
    counts = np.stack([wins[one, two], wins[two, one], ties[one, two]], 1)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        log, tie = values[:-1], values[-1]
        logits = np.stack([log[one], log[two], tie + (log[one] + log[two]) / 2], 1)
        logs = log_softmax(logits, 1)
        # d loss / d logits, then back along the three ways in which a strength enters.
        pull = np.exp(logs) * counts.sum(1, keepdims=True) - counts
        slope = np.zeros_like(values)
        np.add.at(slope, one, pull[:, 0] + pull[:, 2] / 2)
        np.add.at(slope, two, pull[:, 1] + pull[:, 2] / 2)
        slope[-1] = pull[:, 2].sum()
        return float(-(counts * logs).sum() + PRIOR / 2 * (values**2).sum()), slope + PRIOR * values

    found = minimize(loss, np.zeros(len(wins) + 1), jac=True, method="BFGS").x
    return Strengths(found[:-1] - found[:-1].mean(), float(np.exp(found[-1])))


def counted(
    duels: Sequence[Duel], models: Sequence[str], weights: Float[np.ndarray, " duel"] | None = None
) -> tuple[Float[np.ndarray, "model model"], Float[np.ndarray, "model model"]]:
    """Return `wins` and `ties` of `fit`, each vote with its weight, by default 1."""
    place = {model: number for number, model in enumerate(models)}
    wins, ties = np.zeros((2, len(models), len(models)))
    weights = np.ones(len(duels)) if weights is None else weights
    for duel, weight in zip(duels, weights, strict=True):
        first, second = place[duel.first], place[duel.second]
        if duel.winner == "neither":
            ties[first, second] += weight
            ties[second, first] += weight
        else:
            won = (first, second) if duel.winner == "first" else (second, first)
            wins[won] += weight
    return wins, ties


def rate(duels: Sequence[Duel], models: Sequence[str], seed: int = 0) -> dict[str, Interval]:
    """Return each model's log strength; 0 is the mean of all. Votes on two pictures of one model say nothing here."""
    duels = [duel for duel in duels if duel.first != duel.second]
    found = fit(*counted(duels, models)).log
    drawn = np.stack(
        [fit(*counted(duels, models, weights)).log for weights in crossed(_factors(duels), RESAMPLES, seed)]
    )
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {model: Interval(float(found[i]), float(low[i]), float(high[i])) for i, model in enumerate(models)}


def win_share(duels: Sequence[Duel], model: str, rival: str, seed: int = 0) -> Interval | None:
    """Return the share of votes between the two that `model` got, ties counting half; None if there are none."""
    duels = [duel for duel in duels if {duel.first, duel.second} == {model, rival}]
    if not duels:
        return None
    got = np.array([_points(duel, model) for duel in duels])
    return Interval(float(got.mean()), *interval_of_mean(got, _factors(duels), RESAMPLES, seed))


def _points(duel: Duel, model: str) -> float:
    if duel.winner == "neither":
        return 0.5
    return float((duel.first if duel.winner == "first" else duel.second) == model)


def _factors(duels: Sequence[Duel]) -> tuple[list[str], list[str]]:
    return [duel.voter for duel in duels], [duel.prompt for duel in duels]
