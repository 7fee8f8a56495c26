"""FID and KID against closed forms and double loops."""

import pytest
import torch

from slingstone.evaluation.set_distances import frechet_distance, kernel_distance


def normal(count: int, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return shift + scale * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def whitened(count: int) -> torch.Tensor:
    """Points whose mean is exactly 0 and whose covariance is exactly 1."""
    points = normal(count).double()
    points -= points.mean(0)
    return points @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(points.T))).T


def test_the_frechet_distance_is_that_of_the_two_gaussians():
    points = whitened(50)
    other = points @ torch.diag(torch.tensor([2.0, 1.0, 0.5]).double()) + torch.tensor([3.0, 0.0, 4.0]).double()
    # Commuting covariances: |shift|^2 + sum of (difference of deviations)^2.
    assert frechet_distance(points, other) == pytest.approx(25 + 1 + 0 + 0.25, rel=1e-9)
    assert frechet_distance(other, points) == pytest.approx(26.25, rel=1e-9)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)


def test_fewer_pictures_than_features_give_a_number_still():
    few = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)  # roots of eigenvalues that round to about 1e-16


def test_the_frechet_distance_of_a_set_to_itself_is_never_below_zero():
    for seed in range(20):
        features = torch.randn(5, 64, generator=torch.Generator().manual_seed(seed))
        assert 0 <= frechet_distance(features, features) < 1e-4


def test_a_single_picture_has_no_frechet_distance():
    with pytest.raises(ValueError, match="1 and 5 pictures have no FID; give at least two of each"):
        frechet_distance(torch.zeros(1, 4), torch.randn(5, 4))


def test_the_kernel_distance_is_the_unbiased_double_sum():
    one, two = normal(6), normal(6, shift=1.0, seed=1)

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x @ y / 3 + 1) ** 3)

    def pairs(a: torch.Tensor) -> list[float]:
        return [kernel(a[i], a[j]) for i in range(6) for j in range(6) if i != j]

    across = [kernel(x, y) for x in one for y in two]
    expected = sum(pairs(one)) / 30 + sum(pairs(two)) / 30 - 2 * sum(across) / 36
    assert kernel_distance(one, two) == pytest.approx(expected, rel=1e-5)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average_and_positive_between_two():
    same = [kernel_distance(normal(40, seed=2 * i), normal(40, seed=2 * i + 1)) for i in range(40)]
    spread = torch.tensor(same).std() / 40**0.5
    assert abs(sum(same) / 40) < 3 * spread
    assert kernel_distance(normal(300), normal(300, shift=0.5, seed=1)) > 10 * spread
