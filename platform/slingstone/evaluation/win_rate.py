"""How often one model's picture is better than another's of the same prompt and noise, and how sure that is."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from slingstone.evaluation.protocol import Evaluation

RESAMPLES = 2000


class WinRate(NamedTuple):
    """A share of pairs in [0, 1]; ties count half.

    Attributes:
        rate: mean over prompts.
        low, high: ends of the 95 % bootstrap interval over prompts.
        prompts: number of prompts with a pair.
    """

    rate: float
    low: float
    high: float
    prompts: int


def paired_win_rate(first: Evaluation, second: Evaluation, name: str, seed: int = 0) -> WinRate | None:
    """Return how often `first` has the larger value of `name`, over pairs of the same prompt and replica.

    Prompts are resampled, not pictures: those of one prompt resemble each other. Pairs in which the question does not
    apply to either picture are left out; None if no pair is left.

    Raises:
        ValueError: if the two are not of the same pictures.
    """
    mine, theirs = _by_place(first, name), _by_place(second, name)
    if mine.keys() != theirs.keys():
        raise ValueError("the two evaluations are not of the same prompts, replicas and seeds; evaluate both alike")
    wins: dict[str, list[float]] = defaultdict(list)
    for place, own in mine.items():
        other = theirs[place]
        if own is not None and other is not None:
            wins[place[0]].append(0.5 * (1.0 + float(np.sign(own - other))))
    if not wins:
        return None
    shares = np.array([np.mean(pairs) for _, pairs in sorted(wins.items())])
    draws = np.random.default_rng(seed).integers(len(shares), size=(RESAMPLES, len(shares)))
    low, high = np.quantile(shares[draws].mean(1), [0.025, 0.975])
    return WinRate(float(shares.mean()), float(low), float(high), len(shares))


def _by_place(evaluation: Evaluation, name: str) -> dict[tuple[str, int, int], float | None]:
    return {(row.prompt, row.replica, row.seed): row.values[name] for row in evaluation.rows}
