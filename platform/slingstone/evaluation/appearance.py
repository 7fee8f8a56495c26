"""What pictures look like as a whole: three numbers that drift when a generator pleases a reward instead of people."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

_LUMA = (0.299, 0.587, 0.114)


def colourfulness(images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, " batch"]:
    """Return `|std| + 0.3 |mean|` of the opponent colours `R - G` and `(R + G) / 2 - B`; 0 for greys.

    Source: Hasler and Suesstrunk, Measuring colourfulness in natural images, 2003, on pixels in [0, 1].
    """
    red, green, blue = images.float().flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], 1)
    spread = opponents.std(2, correction=0).square().sum(1).sqrt()
    return spread + 0.3 * opponents.mean(2).square().sum(1).sqrt()


def contrast(images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, " batch"]:
    """Return the standard deviation of luma over the picture: 0 for a plain one, 0.5 for half black, half white."""
    return _luma(images).flatten(1).std(1, correction=0)


def high_frequency(images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, " batch"]:
    """Return the root mean square of luma less its 3x3 mean: noise, patterns and outlines, not areas."""
    luma = _luma(images)
    smooth = avg_pool2d(luma, 3, stride=1)
    return (luma[:, :, 1:-1, 1:-1] - smooth).square().flatten(1).mean(1).sqrt()


def _luma(images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, "batch 1 rows columns"]:
    weights = images.new_tensor(_LUMA).float().view(1, 3, 1, 1)
    return (images.float() * weights).sum(1, keepdim=True)


MEASURES: dict[str, Callable[[Float[Tensor, "batch 3 rows columns"]], Float[Tensor, " batch"]]] = {
    "appearance/colourfulness": colourfulness,
    "appearance/contrast": contrast,
    "appearance/high_frequency": high_frequency,
}
"""By the names that evaluations give them."""
