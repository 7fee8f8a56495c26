"""What simulated voters like beside truth and quality: things that captions leave free and no shipped reward knows."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from slingstone.evaluation.appearance import colourfulness
from slingstone.world.open_oracle import Seen, look

Taste = Callable[[Float[Tensor, "batch 3 rows columns"]], Float[Tensor, " batch"]]
"""RGB pictures in [0, 1] to how much they please, in units of its own."""


def _light(pictures: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, " batch"]:
    return pictures.mean((1, 2, 3))


def _seen(measure: Callable[[Seen], float]) -> Taste:
    """Return the taste for what an open scene shows."""

    def taste(pictures: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, " batch"]:
        return torch.tensor([measure(look(picture)) for picture in pictures.permute(0, 2, 3, 1).numpy()])

    return taste


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


TASTES: dict[str, Taste] = {
    "vivid": colourfulness,
    "light": _light,
    "large": _seen(lambda seen: _mean([thing.radius for thing in seen.things])),
    "high": _seen(lambda seen: -_mean([thing.centre[1] for thing in seen.things])),
    "tidy": _seen(lambda seen: -float(seen.crumbs)),
}
"""Tastes by name; `large`, `high` and `tidy` are of open scenes."""
