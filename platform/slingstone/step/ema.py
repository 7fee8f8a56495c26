"""Exponential moving average of weights, with its half-life counted in images."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Fragment(NamedTuple):
    """A stretch of one weight, flattened.

    Attributes:
        start: where it begins in the flattened weight.
        values: in fp32 or wider.
    """

    start: int
    values: Float[Tensor, " length"]


Masters = Callable[[], Mapping[str, Fragment]]
"""Returns, by the names of the weights, what one rank owns of the unrounded weights that its optimizer steps.

The ranks' fragments together are each weight once; of a weight that other ranks own, nothing is returned."""


class ExponentialMovingAverage:
    """fp32 average `theta_ema <- beta theta_ema + (1 - beta) theta`, `beta = 0.5^(images / half_life_images)`.

    A rank averages the fragments that it owns, beside the optimizer's masters, whatever the networks compute in.
    Counting in images makes the average independent of the batch size. A half-life of 0 keeps the latest weights.
    """

    def __init__(self, masters: Masters, half_life_images: float) -> None:
        if not half_life_images >= 0:
            raise ValueError(f"half_life_images is {half_life_images}, must be 0 (no averaging) or positive")
        self.masters = masters
        self.half_life_images = half_life_images
        self.fragments = {name: Fragment(start, values.clone()) for name, (start, values) in masters().items()}

    @torch.no_grad()
    def update(self, num_images: int) -> None:
        """Move towards the present weights, after a step on `num_images` images of all ranks together."""
        keep = 0.5 ** (num_images / self.half_life_images) if self.half_life_images else 0.0
        present = self.masters()
        averages = [fragment.values for fragment in self.fragments.values()]
        if averages:
            torch._foreach_lerp_(averages, [present[name].values for name in self.fragments], 1 - keep)

    def state_dict(self) -> dict[str, tuple[int, Tensor]]:
        """Return this rank's fragments of the average, as plain tuples."""
        return {name: (start, values) for name, (start, values) in self.fragments.items()}

    def load_state_dict(self, state: Mapping[str, tuple[int, Tensor]]) -> None:
        """Restore the fragments.

        Raises:
            ValueError: if they are not those of this rank's weights.
        """
        own = {name: (start, len(values)) for name, (start, values) in self.fragments.items()}
        found = {name: (start, len(values)) for name, (start, values) in state.items()}
        if wrong := {name for name, _ in own.items() ^ found.items()}:
            raise ValueError(
                f"ema: {sorted(wrong)[:3]} differ from the generator's weights: restore the same generator"
            )
        for name, (_, values) in state.items():
            self.fragments[name].values.copy_(values)
