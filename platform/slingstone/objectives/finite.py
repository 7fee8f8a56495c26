"""Samples that are not finite are dropped one by one and counted; the others of their batch go on."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def cleaned(x: Float[Tensor, "batch *rest"]) -> tuple[Float[Tensor, "batch *rest"], Bool[Tensor, " batch"]]:
    """Return `x` with zeros in every row that is not wholly finite, and which rows are finite."""
    finite = x.isfinite().flatten(1).all(1)
    return torch.where(finite.view(-1, *[1] * (x.ndim - 1)), x, torch.zeros_like(x)), finite


def kept_mean(values: Float[Tensor, " batch"], kept: Bool[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Return the mean over the samples that were kept; NaN if there is none."""
    return torch.where(kept, values, torch.zeros_like(values)).sum() / kept.sum()
