"""Distances between two sets of pictures in a feature space: FID and KID."""

import torch
from jaxtyping import Float
from torch import Tensor

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000


def frechet_distance(first: Float[Tensor, "first feature"], second: Float[Tensor, "second feature"]) -> float:
    """Return `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` of means and unbiased covariances, in float64.

    Biased upwards for few pictures: with fewer than the features have dimensions, compare only sets of one size.

    Raises:
        ValueError: a set has no covariance, since it is of fewer than two pictures.

    Source: arXiv:1706.08500, eq. 6 (FID, where the features are Inception's).
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"{len(first)} and {len(second)} pictures have no FID; give at least two of each")
    one, two = first.double(), second.double()
    means = (one.mean(0) - two.mean(0)).square().sum()
    left, right = (torch.atleast_2d(torch.cov(features.T)) for features in (one, two))
    values, vectors = torch.linalg.eigh(left)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # The eigenvalues of C1 C2 are those of the symmetric C1^(1/2) C2 C1^(1/2), all of them real.
    cross = torch.linalg.eigvalsh(root @ right @ root).clamp_min(0).sqrt().sum()
    # Of one distribution it is 0, which rounding may miss by a little on either side.
    return max(0.0, float(means + left.trace() + right.trace() - 2 * cross))


def kernel_distance(
    first: Float[Tensor, "first feature"], second: Float[Tensor, "second feature"], seed: int = 0
) -> float:
    """Return the unbiased squared MMD with the kernel `(x.y / d + 1)^3`, averaged over random subsets.

    Unbiased at any number of pictures, and so below 0 at times for sets of one distribution.

    Source: arXiv:1801.01401, sec. 4 (KID, where the features are Inception's).
    """
    size = min(KID_SUBSET_SIZE, len(first), len(second))
    if size < 2:
        raise ValueError(f"{len(first)} and {len(second)} pictures have no KID; give at least two of each")
    whole = size == len(first) == len(second)
    rng = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(1 if whole else KID_SUBSETS):
        one = first[torch.randperm(len(first), generator=rng)[:size]].double()
        two = second[torch.randperm(len(second), generator=rng)[:size]].double()
        same = sum(
            (kernel.sum() - kernel.trace()) / (size * (size - 1)) for kernel in (_kernel(one, one), _kernel(two, two))
        )
        draws.append(float(same - 2 * _kernel(one, two).mean()))
    return sum(draws) / len(draws)


def _kernel(one: Float[Tensor, "first feature"], two: Float[Tensor, "second feature"]) -> Float[Tensor, "first second"]:
    return (one @ two.T / one.shape[1] + 1) ** 3
