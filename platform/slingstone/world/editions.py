"""The editions of the world: the same captions, drawn and judged in different ways."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from slingstone.world import drawing, open_drawing, open_oracle, oracle

Judge = Callable[[Float[Tensor, "batch 3 rows columns"], Sequence[str]], dict[str, Float[Tensor, " batch"]]]
"""Pictures and their captions to what holds of them."""


@dataclass(frozen=True)
class Edition:
    """How scenes become pictures."""

    size: int
    """Side of a picture in pixels."""
    draw: Callable[..., Float[Tensor, "batch 3 rows columns"]]
    """Scenes and a torch.Generator to pictures, RGB in [0, 1]; a third number is the share of flaws."""
    oracle: Callable[[], Judge]
    """Makes the judge of its pictures."""


EDITIONS = {
    "scenes": Edition(drawing.SIZE, drawing.draw, oracle.Oracle),
    "open_scenes": Edition(open_drawing.SIZE, open_drawing.draw, open_oracle.Oracle),
}
"""Editions by name."""
