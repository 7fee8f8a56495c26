"""How far apart pictures are: distances between pictures of the same prompt."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d


def pixel_rms(images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, "batch batch"]:
    """Return the root mean square of the differences between pixels in [0, 1]: 0 for equal pictures, 1 at most."""
    flat = images.float().flatten(1)
    # Without the product form, whose cancellation leaves equal pictures apart.
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / flat.shape[1] ** 0.5


def coarse_pixel_rms(images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, "batch batch"]:
    """Return `pixel_rms` after averaging 2x2 pixels, so that pixel noise passes less easily for diversity."""
    return pixel_rms(avg_pool2d(images.float(), 2))


Distance = Callable[[Float[Tensor, "batch 3 rows columns"]], Float[Tensor, "batch batch"]]
"""Pictures to the table of distances between them."""

DISTANCES: dict[str, Distance] = {"coarse_pixel_rms": coarse_pixel_rms, "pixel_rms": pixel_rms}
"""Distances by name."""


def distance_named(name: str) -> Distance:
    """Return the distance of this name.

    Raises:
        ValueError: if there is none.
    """
    if name not in DISTANCES:
        raise ValueError(f"diversity is {name!r}, must be one of {sorted(DISTANCES)}")
    return DISTANCES[name]


def mean_distances(images: Float[Tensor, "batch 3 rows columns"], distance: Distance) -> Float[Tensor, " batch"]:
    """Return each picture's mean distance to the others (two or more); the mean of it is the mean pairwise distance."""
    return distance(images).sum(1) / (len(images) - 1)
