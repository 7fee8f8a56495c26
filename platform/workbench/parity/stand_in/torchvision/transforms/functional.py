"""Transforms as functions: on PIL pictures by PIL, on float tensors by torch, as torchvision 0.17 and newer do."""

from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class InterpolationMode(Enum):
    """Ways to interpolate."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def resize(
    img: Image.Image | Tensor, size: int | Sequence[int], interpolation: InterpolationMode = InterpolationMode.BILINEAR
) -> Image.Image | Tensor:
    """Resize to (height, width), or the shortest side to one number; the other side is rounded down."""
    width, height = img.size if isinstance(img, Image.Image) else (img.shape[-1], img.shape[-2])
    if isinstance(size, int):
        long = int(size * max(height, width) / min(height, width))
        size = (size, long) if height <= width else (long, size)
    if (height, width) == tuple(size):
        return img
    if isinstance(img, Image.Image):
        return img.resize((size[1], size[0]), Image.Resampling[interpolation.name])
    mode = interpolation.value
    resized = torch.nn.functional.interpolate(img[None], tuple(size), mode=mode, align_corners=False, antialias=True)
    return resized[0]


def pad(img: Tensor, padding: Sequence[int], fill: float = 0) -> Tensor:
    """Add `fill` at the left, top, right and bottom."""
    left, top, right, bottom = padding
    return torch.nn.functional.pad(img, (left, right, top, bottom), value=fill)


def center_crop(img: Image.Image, size: int) -> Image.Image:
    """Cut a square out of the centre; half of an odd excess is rounded to the even pixel."""
    width, height = img.size
    if min(width, height) < size:
        raise NotImplementedError("the stand-in for torchvision crops, it does not pad")
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return img.crop((left, top, left + size, top + size))


def to_tensor(pic: Image.Image) -> Tensor:
    """Return a uint8 picture as float32 in [0, 1], [channel, height, width]."""
    values = np.array(pic, copy=True)
    return torch.from_numpy(values).view(*values.shape[:2], -1).permute(2, 0, 1).contiguous().float().div(255)


def normalize(tensor: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean and divide by the standard deviation, by channel."""
    centre, spread = (torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device) for values in (mean, std))
    return tensor.sub(centre.view(-1, 1, 1)).div(spread.view(-1, 1, 1))
