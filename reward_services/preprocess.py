"""Pictures of any size to the square, normalised input of a reward model; differentiable, in torch alone.

`exact` reproduces what upstream does to a saved PNG: pictures are put on the 8-bit grid, and where upstream resizes
8-bit pictures with PIL, the grid is restored after each of PIL's two passes. Rounding and clamping pass the gradient
straight through. `smooth` is the same geometry without rounding or clamping.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reward_services.spec import PreprocessMode

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """What a reward model does to a picture before its vision tower.

    Attributes:
        size: side of the model's square input, in pixels.
        fit: `crop` brings the shortest side to `size` and cuts out the centre; `pad` brings the longest side to
            `size` and pads with black.
        grid: whether upstream resizes 8-bit pictures (`uint8`, PIL) or float tensors (`float`).
        crop_offset: how half an odd excess is rounded: `floor` as transformers does, `even` as torchvision does.
        mode: `exact` or `smooth`.
    """

    size: int
    mode: PreprocessMode
    fit: Literal["crop", "pad"]
    grid: Literal["uint8", "float"]
    crop_offset: Literal["floor", "even"]

    def __call__(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """Resize, fit and normalise RGB pictures in [0, 1]."""
        images = self.fitted(images)
        mean = torch.tensor(CLIP_MEAN, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(CLIP_STD, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
        return (images - mean) / std

    def fitted(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """Return the pictures at the model's size, not yet normalised: all that needs the large picture."""
        exact = self.mode == "exact"
        images = _to_grid(images) if exact else images
        height, width = images.shape[-2:]
        if self.fit == "pad":
            scale = self.size / max(height, width)
            fitting = max(1, round(height * scale)), max(1, round(width * scale))
            return _pad(_resize(images, fitting, on_grid=False), self.size)
        # The shortest side; the other is rounded down.
        covering = self.size, int(self.size * width / height)
        if height > width:
            covering = int(self.size * height / width), self.size
        images = _resize(images, covering, on_grid=exact and self.grid == "uint8")
        return _crop(images, self.size, self.crop_offset)

    def after_fitting(self) -> "Preprocess":
        """Return the rule for what `fitted` returned: `after_fitting()(fitted(x))` is the whole rule, bit for bit."""
        return replace(self, mode="smooth")  # at its own size, smooth only normalises


pickscore_preprocess = partial(Preprocess, fit="crop", grid="uint8", crop_offset="floor")
"""PickScore's rule, given size and mode: that of the transformers CLIP processor with PIL."""
hps_preprocess = partial(Preprocess, fit="pad", grid="float", crop_offset="floor")
"""HPS's rule: longest side, zero padding, resized as a float tensor."""
imagereward_preprocess = partial(Preprocess, fit="crop", grid="uint8", crop_offset="even")
"""ImageReward's rule: torchvision's on PIL pictures."""


def square_side(size: object, field: str) -> int:
    """Return a configured size, which transformers allows to be a pair; ValueError if it is not one integer."""
    if not isinstance(size, int):
        raise ValueError(f"{field}={size!r}: only square sizes, given as one integer, are supported")
    return size


def _to_grid(images: Tensor) -> Tensor:
    """Round to what a saved PNG holds; the gradient passes straight through."""
    return _straight_through((images.detach().clamp(0, 1) * 255).round() / 255, images)


def _resize(images: Tensor, size: tuple[int, int], on_grid: bool) -> Tensor:
    """Resize by antialiased bicubic interpolation; on the 8-bit grid in PIL's two passes, with its order of them."""
    if images.shape[-2:] == size:
        return images
    if not on_grid:
        return F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)
    # In units of the grid, so that a tie (common at twice the size) is one in float32 too; PIL rounds ties up.
    levels = _straight_through((images.detach() * 255).round(), images * 255)
    height, width = images.shape[-2:]
    # Since Pillow 13, rows that shrink by more than twice as much as columns do go first.
    rows_first = height - size[0] > max(0, 2 * (width - size[1]))
    for target in ((size[0], width) if rows_first else (height, size[1]), size):
        if levels.shape[-2:] != target:
            resized = F.interpolate(levels, size=target, mode="bicubic", align_corners=False, antialias=True)
            levels = _straight_through((resized.detach() + 0.5).floor().clamp(0, 255), resized)
    return levels / 255


def _straight_through(value: Tensor, images: Tensor) -> Tensor:
    """Return exactly `value`, with the gradient of `images`."""
    return value + (images - images.detach())


def _crop(images: Tensor, size: int, offset: Literal["floor", "even"]) -> Tensor:
    excess = [side - size for side in images.shape[-2:]]
    top, left = (side // 2 if offset == "floor" else round(side / 2) for side in excess)
    return images[..., top : top + size, left : left + size]


def _pad(images: Tensor, size: int) -> Tensor:
    rows, columns = (size - side for side in images.shape[-2:])
    return F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
