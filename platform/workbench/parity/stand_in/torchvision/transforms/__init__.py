"""Transforms as objects."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from torchvision.absent import Absent
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

__all__ = [
    "CenterCrop",
    "Compose",
    "InterpolationMode",
    "Normalize",
    "RandomResizedCrop",
    "Resize",
    "ToTensor",
    "functional",
]


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]):
        self.transforms = transforms

    def __call__(self, img: Any) -> Any:
        """Apply all."""
        for transform in self.transforms:
            img = transform(img)
        return img


class Resize(nn.Module):
    """See `functional.resize`."""

    def __init__(
        self, size: int | Sequence[int], interpolation: InterpolationMode = InterpolationMode.BILINEAR
    ) -> None:
        super().__init__()
        self.size, self.interpolation = size, interpolation

    def forward(self, img: Image.Image | Tensor) -> Image.Image | Tensor:
        """Apply."""
        return functional.resize(img, self.size, self.interpolation)


class CenterCrop(nn.Module):
    """See `functional.center_crop`."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, img: Image.Image) -> Image.Image:
        """Apply."""
        return functional.center_crop(img, self.size)


class ToTensor:
    """See `functional.to_tensor`."""

    def __call__(self, pic: Image.Image) -> Tensor:
        """Apply."""
        return functional.to_tensor(pic)


class Normalize(nn.Module):
    """See `functional.normalize`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, tensor: Tensor) -> Tensor:
        """Apply."""
        return functional.normalize(tensor, self.mean, self.std)


class RandomResizedCrop(Absent): ...  # noqa: D101
