import pytest
import torch

from slingstone.evaluation.diversity import coarse_pixel_rms, distance_named, mean_distances, pixel_rms


def test_distances_are_zero_between_equal_and_one_between_opposite_pictures() -> None:
    images = torch.stack([torch.zeros(3, 6, 6), torch.ones(3, 6, 6), torch.zeros(3, 6, 6)])
    for distance in (pixel_rms, coarse_pixel_rms):
        torch.testing.assert_close(distance(images), torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]))


def test_the_mean_of_each_pictures_distances_is_the_mean_over_pairs() -> None:
    images = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    above = torch.triu(torch.ones(5, 5), diagonal=1).bool()
    torch.testing.assert_close(mean_distances(images, pixel_rms).mean(), pixel_rms(images)[above].mean())


def test_averaging_halves_what_pixel_noise_contributes() -> None:
    # Averaging four independent pixels halves the deviation; 5 % covers the finite picture.
    noise = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert float(coarse_pixel_rms(noise)[0, 1] / pixel_rms(noise)[0, 1]) == pytest.approx(0.5, rel=0.05)


def test_an_unknown_distance_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'vibes', must be one of \['coarse_pixel_rms', 'pixel_rms'\]"):
        distance_named("vibes")
