import numpy as np
import pytest

from slingstone.preferences.accuracy import Judged, accuracy, by, calibrated, reliability


def judged(gap: np.ndarray, first: np.ndarray, **names: list[str]) -> Judged:
    labels = np.stack([first, 1 - first])
    given = {name: [str(place) for place in range(len(gap))] for name in ("prompts", "voters", "models")} | names
    return Judged(np.stack([gap, np.zeros_like(gap)]), labels, **given)


def chosen(gap: np.ndarray, sharpness: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(len(gap)) < 1 / (1 + np.exp(-sharpness * gap))).astype(float)


def test_ties_of_voters_are_left_out_and_ties_of_scores_count_half() -> None:
    found = accuracy(judged(np.array([1.0, -1.0, 0.0, 2.0]), np.array([1.0, 1.0, 1.0, 0.5])))
    assert (found.rate, found.votes) == (0.5, 3)
    assert np.isnan(accuracy(judged(np.array([1.0]), np.array([0.5]))).rate)


def test_the_interval_of_independent_votes_is_the_binomial_one_and_that_of_one_voters_each_is_wider() -> None:
    gap = np.random.default_rng(1).normal(size=400)
    first = chosen(gap, 1.0)
    alone = accuracy(judged(gap, first, voters=["a"] * 400))
    error = np.sqrt(alone.rate * (1 - alone.rate) / 400)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    few = accuracy(judged(gap, first, voters=["a"] * 400, prompts=[str(place % 8) for place in range(400)]))
    both = accuracy(judged(gap, first, voters=[str(place % 5) for place in range(400)]))
    assert both.high - both.low > alone.high - alone.low
    assert few.rate == alone.rate


def test_the_temperature_is_that_of_the_voters() -> None:
    gap = np.random.default_rng(2).normal(size=20_000)
    found = calibrated(judged(3 * gap, chosen(gap, 2.0)))
    assert found.temperature == pytest.approx(1.5, rel=0.05)  # the gap of 3 g is judged as 2 g
    for foretold, share, votes in reliability(judged(3 * gap, chosen(gap, 2.0)), found.temperature):
        assert share == pytest.approx(foretold, abs=4 * 0.5 / np.sqrt(votes))


def test_groups_with_too_few_votes_are_left_out() -> None:
    gap = np.ones(24)
    models = ["a / b"] * 15 + ["a / c"] * 9
    assert list(by(judged(gap, np.ones(24), models=models), models)) == ["a / b"]
