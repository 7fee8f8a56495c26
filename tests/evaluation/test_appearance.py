"""The statistics of whole pictures, on pictures whose numbers are known by hand."""

import pytest
import torch

from slingstone.evaluation.appearance import MEASURES, colourfulness, contrast, high_frequency

GREY = torch.full((1, 3, 12, 12), 0.4)
HALVES = torch.cat([torch.zeros(1, 3, 12, 6), torch.ones(1, 3, 12, 6)], 3)
STRIPES = torch.arange(12).remainder(2).float().expand(1, 3, 12, 12)


def test_a_plain_grey_picture_has_none_of_them():
    for measure in MEASURES.values():
        assert measure(GREY).item() == pytest.approx(0, abs=1e-6)


def test_half_black_half_white_is_the_most_contrast_and_no_colour():
    assert contrast(HALVES).item() == pytest.approx(0.5)
    assert colourfulness(HALVES).item() == pytest.approx(0, abs=1e-6)


def test_a_plain_red_picture_is_as_colourful_as_the_formula_says():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 12, 12)
    assert colourfulness(red).item() == pytest.approx(0.3 * (1 + 0.25) ** 0.5)


def test_stripes_of_one_pixel_are_high_frequency_and_an_edge_hardly():
    # A stripe of 1 between two of 0 has the mean 1/3: two thirds above it; and the other way round.
    assert high_frequency(STRIPES).item() == pytest.approx(2 / 3)
    # Two of ten inner columns are a third off their mean.
    assert high_frequency(HALVES).item() == pytest.approx((2 / 10 / 9) ** 0.5)


def test_each_picture_has_its_own_number():
    both = torch.cat([GREY, HALVES])
    for measure in MEASURES.values():
        torch.testing.assert_close(measure(both), torch.cat([measure(GREY), measure(HALVES)]))
