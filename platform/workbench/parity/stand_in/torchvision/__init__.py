"""A stand-in for torchvision where there is none: beside the CPU build of torch, PyPI's torchvision cannot be imported.

It holds what image-reward, clip, timm and hpsv2x need in order to be imported and to judge a picture, and nothing more;
what they only name is a class that refuses to be made. tests/workbench/test_stand_in.py compares it with PIL.
"""

from torchvision import datasets, ops, transforms

__version__ = "0+stand.in"
__all__ = ["datasets", "ops", "transforms"]
