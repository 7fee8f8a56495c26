"""What the upstream packages name and never use while they judge a picture."""

from typing import Any


class Absent:
    """A class of torchvision that the stand-in lacks."""

    def __init__(self, *args: Any, **kwargs: Any):
        raise NotImplementedError(f"the stand-in for torchvision has no {type(self).__name__}: install torchvision")
