"""Operators: none but what timm and open_clip import by name."""

from torchvision.ops import misc

__all__ = ["misc"]
