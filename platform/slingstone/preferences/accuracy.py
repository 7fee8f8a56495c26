"""How well scores foretell votes: accuracy with its interval, by whatever votes are grouped by, and calibration."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar

from slingstone.evaluation.resampling import interval_of_mean

RESAMPLES = 1000
BINS = 10


@dataclass(frozen=True)
class Judged:
    """Votes and what a reward said of their pictures, in the same order.

    Attributes:
        scores: of the first and the second picture.
        labels: shares of the vote, (1, 0), (0, 1) or one half each.
        prompts, voters, models: of each vote; models as `a / b`.
    """

    scores: Float[np.ndarray, "2 vote"]
    labels: Float[np.ndarray, "2 vote"]
    prompts: Sequence[str]
    voters: Sequence[str]
    models: Sequence[str]

    @property
    def gap(self) -> Float[np.ndarray, " vote"]:
        """First minus second score."""
        return self.scores[0] - self.scores[1]

    @property
    def decided(self) -> np.ndarray:
        """Which votes choose."""
        return self.labels[0] != self.labels[1]

    @property
    def right(self) -> Float[np.ndarray, " decided"]:
        """Of the votes that choose, 1 where the score chooses the same, 0 where not, 0.5 where it does not."""
        sign = np.sign(self.gap) * np.sign(self.labels[0] - self.labels[1])
        return 0.5 + 0.5 * sign[self.decided]


class Accuracy(NamedTuple):
    """A share of votes in [0, 1], with the ends of its 95 % interval and their number."""

    rate: float
    low: float
    high: float
    votes: int


def accuracy(judged: Judged, seed: int = 0) -> Accuracy:
    """Return how many of the votes that choose the scores foretell; the bootstrap is over prompts and voters."""
    right, votes = judged.right, int(judged.decided.sum())
    if votes == 0:
        return Accuracy(float("nan"), float("nan"), float("nan"), 0)
    factors = [np.asarray(names)[judged.decided].tolist() for names in (judged.prompts, judged.voters)]
    return Accuracy(float(right.mean()), *interval_of_mean(right, factors, RESAMPLES, seed), votes)


def by(judged: Judged, names: Sequence[str], least: int = 10) -> Mapping[str, Accuracy]:
    """Return the accuracy of each group of votes that has at least `least` which choose, the largest first."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        if judged.decided[place]:
            groups[name].append(place)
    largest = sorted((group for group in groups.items() if len(group[1]) >= least), key=lambda group: -len(group[1]))
    return {name: accuracy(part(judged, places)) for name, places in largest}


def part(judged: Judged, places: Sequence[int]) -> Judged:
    """Return some of the votes."""
    index = list(places)
    names = [[values[place] for place in index] for values in (judged.prompts, judged.voters, judged.models)]
    return Judged(judged.scores[:, index], judged.labels[:, index], *names)


class Calibration(NamedTuple):
    """What turns scores into probabilities, and to a common scale.

    Attributes:
        temperature: `sigmoid(gap / temperature)` is the probability that the first picture is chosen.
        mean, std: of the scores of the held-out pictures; `normalisation: {kind: fixed, ...}` of `rewards.services`.
    """

    temperature: float
    mean: float
    std: float


def calibrated(judged: Judged) -> Calibration:
    """Return the temperature of the smallest cross-entropy, in 1/1000 to 1000 times the gaps' RMS, and the moments."""
    gap, share = judged.gap, judged.labels[0]
    scale = float(np.sqrt((gap**2).mean())) or 1.0

    def cross_entropy(log_temperature: float) -> float:
        logits = gap / (scale * np.exp(log_temperature))
        return float(np.mean(share * np.logaddexp(0, -logits) + (1 - share) * np.logaddexp(0, logits)))

    found = minimize_scalar(cross_entropy, bounds=(-np.log(1000), np.log(1000)), method="bounded")
    return Calibration(scale * float(np.exp(found.x)), float(judged.scores.mean()), float(judged.scores.std()))


def reliability(judged: Judged, temperature: float) -> list[tuple[float, float, int]]:
    """Return by tenths of the foretold probability: its mean, the share that chose so, and the number of votes."""
    foretold = 1 / (1 + np.exp(-judged.gap / temperature))
    bins = np.minimum((foretold * BINS).astype(int), BINS - 1)
    rows = [(bins == number).nonzero()[0] for number in range(BINS)]
    return [(float(foretold[r].mean()), float(judged.labels[0][r].mean()), len(r)) for r in rows if len(r)]
