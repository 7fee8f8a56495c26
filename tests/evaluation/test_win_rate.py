"""Paired comparisons against closed forms."""

import math

import pytest

from slingstone.evaluation.protocol import Evaluation, Row
from slingstone.evaluation.win_rate import paired_win_rate


def scored(scores: dict[str, list[float | None]]) -> Evaluation:
    rows = [
        Row(prompt, replica, 7, {"quality": value})
        for prompt, values in scores.items()
        for replica, value in enumerate(values)
    ]
    return Evaluation(tuple(rows), len(rows), "pixel_rms")


def test_the_rate_is_the_mean_over_prompts_of_won_pairs_with_ties_as_halves():
    first = scored({"a": [1.0, 2.0], "b": [5.0, 5.0], "c": [0.0, None]})
    second = scored({"a": [0.0, 3.0], "b": [4.0, 5.0], "c": [1.0, 9.0]})
    forth, back = paired_win_rate(first, second, "quality"), paired_win_rate(second, first, "quality")
    assert forth is not None
    assert back is not None
    assert forth.rate == pytest.approx((0.5 + 0.75 + 0.0) / 3)
    assert forth.rate + back.rate == pytest.approx(1)
    assert forth.prompts == 3


def test_the_interval_is_that_of_a_proportion():
    count, won = 400, 280
    first = scored({f"{i:03}": [1.0 if i < won else -1.0] for i in range(count)})
    second = scored({f"{i:03}": [0.0] for i in range(count)})
    found = paired_win_rate(first, second, "quality")
    assert found is not None
    half = 1.96 * math.sqrt(0.7 * 0.3 / count)
    # Percentiles of 2000 resamples, each end known to about 6 % of the half-width.
    assert found.low == pytest.approx(0.7 - half, abs=0.15 * half)
    assert found.high == pytest.approx(0.7 + half, abs=0.15 * half)
    assert paired_win_rate(first, second, "quality") == found, "the resampling has a seed"


def test_pictures_of_other_prompts_or_none_to_compare_are_told_apart():
    with pytest.raises(ValueError, match="not of the same prompts"):
        paired_win_rate(scored({"a": [1.0]}), scored({"b": [1.0]}), "quality")
    assert paired_win_rate(scored({"a": [None]}), scored({"a": [1.0]}), "quality") is None
