"""Exponential moving average of weights, with its half-life counted in images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from slingstone.objectives.diffusion import at_least_fp32

NamedParameters = Callable[[], Iterator[tuple[str, Tensor]]]
"""Yields (name, tensor) of the trained weights. Elementwise averaging works on shards as well as on whole tensors, so a
rank of a sharded engine may yield just the shard that it holds, as long as writing into the tensor changes the weights.
A generator function may gather a parameter before its `yield` and release it after."""


class ExponentialMovingAverage:
    """fp32 average `theta_ema <- beta theta_ema + (1 - beta) theta`, `beta = 0.5^(images / half_life_images)`.

    Counting in images makes the average independent of the batch size. A half-life of 0 keeps the latest weights.
    """

    def __init__(self, parameters: NamedParameters, half_life_images: float) -> None:
        if not half_life_images >= 0:
            raise ValueError(f"half_life_images is {half_life_images}, must be 0 (no averaging) or positive")
        self.parameters = parameters
        self.half_life_images = half_life_images
        self.shadow = {name: at_least_fp32(tensor.detach()).clone() for name, tensor in parameters()}

    @torch.no_grad()
    def update(self, num_images: int) -> None:
        """Move towards the present weights, after a step on `num_images` images of all ranks together."""
        keep = 0.5 ** (num_images / self.half_life_images) if self.half_life_images else 0.0
        for name, tensor in self.parameters():
            self.shadow[name].lerp_(at_least_fp32(tensor.detach()), 1 - keep)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the average in the place of the weights, and the weights back at the end."""
        trained: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, tensor in self.parameters():
                trained[name] = tensor.detach().clone()
                tensor.copy_(self.shadow[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self.parameters():
                    tensor.copy_(trained[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average, by parameter name."""
        return dict(self.shadow)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the average.

        Raises:
            ValueError: if names or shapes differ from those of the weights.
        """
        shapes = {name: tensor.shape for name, tensor in self.shadow.items()}
        wrong = {
            name for name in shapes.keys() | state.keys() if name not in state or state[name].shape != shapes.get(name)
        }
        if wrong:
            raise ValueError(
                f"ema: {sorted(wrong)[:3]} differ from the generator's weights: restore the same generator"
            )
        for name, tensor in state.items():
            self.shadow[name].copy_(tensor)
